"""Every op works under the modes of torch: inference, autocast, checkpointing, hooks, graphs."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.measure import assert_same_bits, outputs_of, run
from tests.memory import saved_tensors
from tests.registry import GPUS, each, each_derived

pytestmark = pytest.mark.once

HALF = (torch.bfloat16, torch.float16)


@each("samples", dtypes=[torch.float32, torch.bfloat16])
def test_recording_does_not_change_the_result(entry, sample):
    recorded, _ = run(entry.function, sample)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_same_bits(outputs_of(entry.function(*sample.args, **sample.kwargs)), recorded)


@each_derived()
def test_a_second_backward_gives_the_same_bits(entry, sample):
    """Also when the caller has written into the first gradient."""
    sample = sample.recording()
    outputs = [
        x for x in outputs_of(entry.function(*sample.args, **sample.kwargs)) if x.requires_grad
    ]

    def gradients(factor, **options):
        cotangents = [torch.full_like(x, factor) for x in outputs]
        return torch.autograd.grad(outputs, sample.leaves(), cotangents, **options)

    first = gradients(1.0, retain_graph=True)
    kept = [x.clone() for x in first]
    for x in first:
        x.fill_(float("nan"))
    assert_same_bits(list(gradients(1.0, retain_graph=True)), kept)
    twice = gradients(2.0, retain_graph=True)
    assert_same_bits([x / 2 for x in twice], kept)  # times 2 is exact
    with_graph = gradients(1.0, create_graph=True)
    assert_same_bits([x.detach() for x in with_graph], kept)
    assert_same_bits(list(gradients(1.0)), kept)


@each_derived()
def test_gradients_accumulate(entry, sample):
    _, expected = run(entry.function, sample, ones=True)
    recording = sample.recording()
    for _ in range(2):
        outputs = outputs_of(entry.function(*recording.args, **recording.kwargs))
        outputs = [x for x in outputs if x.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
    assert_same_bits([x.grad for x in recording.leaves()], [2 * x for x in expected])


@each_derived()
def test_a_gradient_hook_may_write(entry, sample):
    _, expected = run(entry.function, sample, ones=True)
    if any(0 in x.stride() for x in expected):
        pytest.skip("a gradient is one value, expanded, as that of torch.sum")
    recording = sample.recording()
    for leaf in recording.leaves():
        leaf.register_hook(lambda gradient: gradient.mul_(4))
    outputs = outputs_of(entry.function(*recording.args, **recording.kwargs))
    outputs = [x for x in outputs if x.requires_grad]
    torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
    gradients = [x.grad for x in recording.leaves()]
    assert_same_bits(gradients, [4 * x for x in expected])


@each_derived()
def test_checkpointing(entry, sample):
    def recomputed(*args, **kwargs):
        return checkpoint(entry.function, *args, use_reentrant=False, **kwargs)

    for actual, expected in zip(run(recomputed, sample), run(entry.function, sample), strict=True):
        assert_same_bits(actual, expected)


@each_derived()
def test_arguments_changed_before_backward_are_noticed(entry, sample):
    """Either the gradient is that of the call, or backward raises: never a silent wrong one."""
    _, expected = run(entry.function, sample, ones=True)
    leaves = sample.recording().leaves()
    copies = [x.clone() for x in leaves]
    args, kwargs = list(sample.args), dict(sample.kwargs)
    for place, x in zip(sample.grad, copies, strict=True):
        (args if isinstance(place, int) else kwargs)[place] = x
    outputs = [x for x in outputs_of(entry.function(*args, **kwargs)) if x.requires_grad]
    with torch.no_grad():
        for x in copies:
            x.fill_(0.25)
    message = ""
    try:
        gradients = torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs])
    except RuntimeError as error:
        message = str(error)
    if message:
        assert "modified by an inplace operation" in message
    else:
        assert_same_bits(list(gradients), expected)


@each_derived()
def test_graph_is_freed_by_backward(entry, sample):
    sample = sample.recording()
    if not saved_tensors(lambda: entry.function(*sample.args, **sample.kwargs)):
        pytest.skip("backward needs nothing, so nothing is there to be freed")
    outputs = [
        x for x in outputs_of(entry.function(*sample.args, **sample.kwargs)) if x.requires_grad
    ]
    ones = [torch.ones_like(x) for x in outputs]
    torch.autograd.grad(outputs, sample.leaves(), ones)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(outputs, sample.leaves(), ones)


@each_derived()
def test_lazy_clones_stay_lazy(entry, sample):
    """A copy-on-write argument is read, so it must not be copied."""
    lazy = sample.map(torch._lazy_clone)
    run(entry.function, lazy)
    assert all(torch._C._is_cow_tensor(x) for x in lazy.tensors() if x.numel())


@each_derived()
def test_negated_views_are_understood(entry, sample):
    negated = torch._neg_view(-sample.leaves()[0])
    assert negated.is_neg()
    other = sample.replacing(sample.grad[0], negated)
    actual = outputs_of(entry.function(*other.args, **other.kwargs))
    assert_same_bits(actual, outputs_of(entry.function(*sample.args, **sample.kwargs)))


@each("samples", dtypes=HALF, where=lambda entry: entry.has_derivative)
def test_autocast_takes_half_types_as_they_come(entry, sample):
    """The ops compute half types in float32 themselves: nothing is cast, to nothing is lost."""
    expected = run(entry.function, sample)
    x = sample.leaves()[0]
    with torch.autocast(x.device.type, dtype=x.dtype):
        actual = run(entry.function, sample)
    for x, y in zip(actual, expected, strict=True):
        assert_same_bits(x, y)
        assert [a.dtype for a in x] == [a.dtype for a in y]


@each("small_samples", dtypes=[torch.float32], devices=GPUS)
def test_cuda_graphs(entry, sample):
    """Forward and backward can be captured: neither synchronises nor allocates for itself."""
    expected = run(entry.function, sample, ones=True)
    recording = sample.recording()

    def step(ones):
        outputs = outputs_of(entry.function(*recording.args, **recording.kwargs))
        derived = [x for x in outputs if x.requires_grad]
        ones = ones or [torch.ones_like(x) for x in derived]
        leaves = recording.leaves()
        return outputs, torch.autograd.grad(derived, leaves, ones) if derived else (), ones

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _, _, ones = step(None)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs, gradients, _ = step(ones)
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits([x.detach() for x in outputs], expected[0])
    assert_same_bits(list(gradients), expected[1])
