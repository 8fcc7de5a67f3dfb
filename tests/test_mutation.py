"""An op writes into what it says it writes into, announces that, and into nothing else."""

import pytest
import torch

from tests.measure import assert_same_bits, outputs_of, run
from tests.registry import each, each_small


def in_place(entry):
    return entry.in_place


def has_out(entry):
    return entry.has_out


def pointwise(entry):
    return entry.in_place and entry.has_out


@each("samples", "large_samples")
def test_arguments_are_left_alone(entry, sample):
    before = sample.copy()
    versions = [x._version for x in sample.tensors()]
    run(entry.function, sample)
    assert_same_bits(sample.tensors(), before.tensors())
    assert versions == [x._version for x in sample.tensors()]


@each("samples", where=in_place)
def test_in_place_gives_the_functional_result(entry, sample):
    (expected,) = outputs_of(entry.function(*sample.args, **sample.kwargs))
    x, *rest = sample.copy().args
    if 0 in x.stride() and x.numel() > 1:
        with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
            entry.in_place(x, *rest, **sample.kwargs)
        return
    strides = x.stride()
    assert entry.in_place(x, *rest, **sample.kwargs) is x
    assert_same_bits([x], [expected])
    assert x.stride() == strides


@each("samples", where=has_out)
def test_out_gives_the_functional_result(entry, sample):
    (expected,) = outputs_of(entry.function(*sample.args, **sample.kwargs))
    out = torch.empty_like(expected)
    assert entry.function(*sample.args, **sample.kwargs, out=out) is out
    assert_same_bits([out], [expected])


@each_small(where=pointwise)
def test_out_without_elements_is_resized(entry, sample):
    (expected,) = outputs_of(entry.function(*sample.args, **sample.kwargs))
    out = expected.new_empty(0)
    assert entry.function(*sample.args, **sample.kwargs, out=out) is out
    assert_same_bits([out], [expected])


@each_small(where=in_place)
def test_in_place_bumps_the_version(entry, sample):
    x, *rest = sample.copy().args
    version = x._version
    entry.in_place(x, *rest, **sample.kwargs)
    assert x._version == version + 1


@each_small(where=in_place)
def test_in_place_on_a_saved_tensor_is_noticed_by_backward(entry, sample):
    x, *rest = sample.copy().recording().args
    y = x.clone()
    loss = (y * y).sum()
    entry.in_place(y, *rest, **sample.kwargs)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each_small(where=in_place)
def test_in_place_gradients_are_the_functional_ones(entry, sample):
    def through_a_view(x, *rest, **kwargs):
        """Writes into a view of a tensor that takes part in the graph."""
        base = torch.stack([x, x])
        entry.in_place(base[1], *rest, **kwargs)
        return base

    def functional(x, *rest, **kwargs):
        return torch.stack([x, entry.function(x, *rest, **kwargs)])

    for actual, expected in zip(run(through_a_view, sample), run(functional, sample), strict=True):
        assert_same_bits(actual, expected)


@each_small(where=in_place)
def test_in_place_on_a_leaf_raises_and_changes_nothing(entry, sample):
    x, *rest = sample.copy().recording().args
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        entry.in_place(x, *rest, **sample.kwargs)
    assert torch.equal(x, before)


@each_small(where=has_out)
def test_out_bumps_the_version(entry, sample):
    (expected,) = outputs_of(entry.function(*sample.args, **sample.kwargs))
    out = torch.empty_like(expected)
    version = out._version
    entry.function(*sample.args, **sample.kwargs, out=out)
    assert out._version == version + 1


@each_small(where=has_out)
def test_out_with_a_gradient_raises(entry, sample):
    sample = sample.recording()
    (out,) = outputs_of(entry.function(*sample.args, **sample.kwargs))
    with pytest.raises(RuntimeError, match=r"don't support automatic differentiation"):
        entry.function(*sample.args, **sample.kwargs, out=out)


@each_small(where=pointwise)
def test_out_of_a_narrower_dtype_raises_and_changes_nothing(entry, sample):
    out = torch.full_like(sample.args[0], 7, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="can't be cast"):
        entry.function(*sample.args, **sample.kwargs, out=out)
    assert (out == 7).all()


@each_small(where=pointwise)
def test_out_that_overlaps_the_input_raises(entry, sample):
    base = torch.arange(8.0, dtype=torch.float64, device=sample.args[0].device)
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        entry.function(base[:-1], *sample.args[1:], out=base[1:])


@each("bad_calls", dtypes=[torch.float32], where=in_place)
def test_nothing_is_changed_by_a_call_that_raises(entry, sample):
    x, *rest = sample.args
    before, version = x.clone(), x._version
    with pytest.raises(sample.error):
        entry.in_place(x, *rest, **sample.kwargs)
    if entry.has_out:
        out = torch.full_like(x, 7)
        with pytest.raises(sample.error):
            entry.function(x, *rest, **sample.kwargs, out=out)
        assert (out == 7).all()
    assert_same_bits([x], [before])
    assert x._version == version
