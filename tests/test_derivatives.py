"""Every op has first and second derivatives in backward and forward mode, and under torch.func.

Numerical derivatives and Hessians are taken on the CPU: their formulas are the same ops everywhere,
and tests/test_agreement.py judges the gradients that the kernels of each device give.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from tests.entry import Sample
from tests.measure import cotangents_for, outputs_of
from tests.registry import each_derived, each_small

pytestmark = pytest.mark.once


def of_leaves(function, sample: Sample):
    """The call as a function of the arguments in which to differentiate, and these arguments."""

    def call(*leaves: Tensor):
        args, kwargs = list(sample.args), dict(sample.kwargs)
        for place, leaf in zip(sample.grad, leaves, strict=True):
            (args if isinstance(place, int) else kwargs)[place] = leaf
        return tuple(outputs_of(function(*args, **kwargs)))

    recording = sample.recording()
    derived = [x.requires_grad for x in outputs_of(function(*recording.args, **recording.kwargs))]
    return (
        lambda *leaves: tuple(x for x, d in zip(call(*leaves), derived, strict=True) if d),
        recording.leaves(),
    )


def to_number(function, sample: Sample):
    """The call as a function of its first leaf with one number as the result."""
    call, leaves = of_leaves(function, sample)
    leaves = [x.detach() for x in leaves]
    cotangents = cotangents_for(list(call(*leaves)))

    def number(x: Tensor) -> Tensor:
        return sum((y * c).sum() for y, c in zip(call(x, *leaves[1:]), cotangents, strict=True))

    return number, leaves[0]


@pytest.fixture
def no_fallback():
    """vmap runs our batching rules: falling back to a loop, with a warning or without, fails."""
    torch._C._functorch._set_vmap_fallback_enabled(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*batching rule.*")
        yield
    torch._C._functorch._set_vmap_fallback_enabled(True)


@each_derived(devices=["cpu"])
def test_first_derivatives(entry, sample, no_fallback):
    call, leaves = of_leaves(entry.function, sample)
    assert torch.autograd.gradcheck(
        call,
        leaves,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@each_derived(devices=["cpu"])
def test_second_derivatives(entry, sample, no_fallback):
    call, leaves = of_leaves(entry.function, sample)
    assert torch.autograd.gradgradcheck(
        call, leaves, check_fwd_over_rev=True, check_batched_grad=True
    )


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(hessian, id="forward-over-reverse"),
        pytest.param(lambda f: jacrev(jacrev(f)), id="reverse-over-reverse"),
        pytest.param(lambda f: jacfwd(jacfwd(f)), id="forward-over-forward"),
        pytest.param(lambda f: jacrev(jacfwd(f)), id="reverse-over-forward"),
    ],
)
@each_derived(devices=["cpu"])
def test_hessian(entry, sample, transform, no_fallback):
    number, x = to_number(entry.function, sample)
    expected = torch.autograd.functional.hessian(to_number(entry.reference, sample)[0], x)
    torch.testing.assert_close(transform(number)(x), expected, rtol=1e-10, atol=1e-12)


@each_derived()
def test_jvp_and_grad(entry, sample, no_fallback):
    number, x = to_number(entry.function, sample)
    reference, _ = to_number(entry.reference, sample)
    direction = torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=x.device).view(x.shape)
    for actual, expected in [
        (grad(number)(x), grad(reference)(x)),
        (jvp(number, (x,), (direction,)), jvp(reference, (x,), (direction,))),
        (jvp(grad(number), (x,), (direction,)), jvp(grad(reference), (x,), (direction,))),
    ]:
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def batches(sample: Sample):
    """Ways to batch a call: one tensor at a time in its first axis, and all in their last."""
    tensors = [("args", i) for i, x in enumerate(sample.args) if isinstance(x, Tensor)]
    tensors += [("kwargs", k) for k, x in sample.kwargs.items() if isinstance(x, Tensor)]
    yield from ([(place, 0)] for place in tensors)
    if len(tensors) > 1:
        yield [(place, -1) for place in tensors]


@each_derived()
def test_vmap(entry, sample, no_fallback):
    for places in batches(sample):

        def call(*values: Tensor, places=places):
            args, kwargs = list(sample.args), dict(sample.kwargs)
            for ((kind, key), _), value in zip(places, values, strict=True):
                (args if kind == "args" else kwargs)[key] = value
            return tuple(outputs_of(entry.function(*args, **kwargs)))

        examples = []  # of each place
        for (kind, key), _ in places:
            x = getattr(sample, kind)[key]
            # Three examples: other logits, other targets; fractions stay fractions.
            examples.append([x, x.flip(0) if x.dim() else x.clone(), x.clone()])
        in_dims = tuple(dim for _, dim in places)
        stacked = [torch.stack(x, dim) for x, dim in zip(examples, in_dims, strict=True)]
        expected = [torch.stack(y) for y in zip(*map(call, *examples), strict=True)]
        torch.testing.assert_close(
            vmap(call, in_dims)(*stacked), tuple(expected), rtol=1e-12, atol=1e-14, equal_nan=True
        )


@each_derived()
def test_gradients_per_example(entry, sample, no_fallback):
    number, x = to_number(entry.function, sample)
    xs = torch.stack([x, 2 * x, -x])
    expected = torch.stack([grad(number)(x) for x in xs])
    torch.testing.assert_close(vmap(grad(number))(xs), expected, rtol=1e-12, atol=1e-14)


@each_small(where=lambda entry: entry.in_place)
def test_vmap_in_place(entry, sample, no_fallback):
    x = torch.stack([sample.args[0], -sample.args[0]])
    expected = torch.stack([entry.function(y, *sample.args[1:]) for y in x])
    vmap(lambda y: entry.in_place(y, *sample.args[1:]))(x)
    assert torch.equal(x, expected)
