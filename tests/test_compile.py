"""Every op is known to torch's compilers: opcheck, torch.compile, torch.export.

What is asked here depends neither on the device nor on the instruction set (`once`). Compiled
graphs run eagerly but for one sample per op that goes through inductor, which takes seconds each.
"""

from __future__ import annotations

import pytest
import torch
import torch._functorch.config
import torch._inductor.config

from tests.calls import calls_of
from tests.entry import Sample
from tests.measure import assert_same_bits, outputs_of, run
from tests.registry import ENTRIES, each_derived, each_small, is_public, made

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def _compiled_afresh():
    """Without the caches on disk, which do not know when a fake kernel has changed."""
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        yield
    torch._dynamo.reset()


def compiled(function, *, backend="aot_eager", dynamic=False):
    return torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)


@each_derived(devices=["cpu"])
def test_opcheck(entry, sample):
    """Schema, fake kernel, autograd registration, and tracing with dynamic shapes."""
    for op, args, kwargs in calls_of(lambda: run(entry.function, sample)):
        if op._schema.name == f"pyext::{entry.op}":
            Sample("", args, kwargs).tensors()[0].requires_grad_()
        values = dict(zip([a.name for a in op._schema.arguments], args, strict=False)) | kwargs
        torch.library.opcheck(op, (), values)


@each_small(devices=["cpu"], where=lambda entry: entry.in_place)
def test_opcheck_in_place(entry, sample):
    sample = sample.copy()
    for op, args, kwargs in calls_of(lambda: entry.in_place(*sample.args, **sample.kwargs)):
        torch.library.opcheck(op, args, kwargs)


@each_small(devices=["cpu"], where=lambda entry: entry.has_out)
def test_opcheck_out(entry, sample):
    (result,) = outputs_of(entry.function(*sample.args, **sample.kwargs))
    out = torch.empty_like(result)
    for op, args, kwargs in calls_of(
        lambda: entry.function(*sample.args, **sample.kwargs, out=out)
    ):
        torch.library.opcheck(op, args, kwargs)


@each_derived(devices=["cpu"])
def test_compile_once_for_equal_shapes(entry, sample):
    function = compiled(entry.function)
    expected = run(entry.function, sample)
    for error_on_recompile in (False, True):
        with torch._dynamo.config.patch(error_on_recompile=error_on_recompile):
            actual = run(function, sample.copy())
        for x, y in zip(actual, expected, strict=True):
            assert_same_bits(x, y)


@each_small(devices=["cpu"], where=lambda entry: entry.in_place)
def test_compile_in_place(entry, sample):
    x, *rest = sample.copy().args
    expected = entry.function(x, *rest, **sample.kwargs)
    compiled(lambda x: entry.in_place(x, *rest, **sample.kwargs))(x)
    assert_same_bits([x], [expected])


def longer(sample, rows):
    """The sample with its first axis repeated, in the same order of memory: more rows."""
    n = sample.tensors()[0].shape[0]

    def change(x):
        if not x.dim() or x.shape[0] != n:
            return x
        order = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
        y = x.repeat(rows, *[1] * (x.dim() - 1)).permute(order).contiguous()
        return y.permute([order.index(axis) for axis in range(x.dim())])

    return sample.map(change)


@each_derived(devices=["cpu"])
def test_compile_once_for_dynamic_shapes(entry, sample):
    if not sample.tensors()[0].dim() or not sample.rows:
        pytest.skip("the first axis is not one of rows")
    function = compiled(entry.function, dynamic=True)
    run(function, sample)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (2, 7):
            actual = run(function, longer(sample, rows))
            for x, y in zip(actual, run(entry.function, longer(sample, rows)), strict=True):
                assert_same_bits(x, y)


@pytest.mark.parametrize(
    "entry", [entry for entry in ENTRIES if entry.has_derivative], ids=lambda entry: entry.name
)
def test_compile_with_inductor(entry):
    sample = made(entry, "small_samples", "cpu", torch.float64)[0]
    first = sample.grad[0]

    def block(*args, **kwargs):
        """The op between others, which inductor fuses and lays out as it likes."""
        args = [x * 2 + 1 if i == first else x for i, x in enumerate(args)]
        return entry.function(*args, **kwargs) * 3

    actual, expected = run(compiled(block, backend="inductor"), sample), run(block, sample)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


@each_small(devices=["cpu"], where=is_public)
def test_export(entry, sample):
    class Module(torch.nn.Module):
        def forward(self, *args):
            return tuple(outputs_of(entry.function(*args, **sample.kwargs)))

    tensors = [x for x in sample.args if isinstance(x, torch.Tensor)]
    rows = torch.export.Dim("rows", min=2)
    dynamic = len(tensors) == len(sample.tensors()) and tensors[0].dim() > 1 and sample.rows
    n = tensors[0].shape[0] if dynamic else None
    shapes = tuple(
        {0: rows} if isinstance(x, torch.Tensor) and x.dim() and x.shape[0] == n else None
        for x in sample.args
    )
    program = torch.export.export(
        Module(), sample.args, dynamic_shapes=(shapes,) if dynamic else None, strict=True
    )
    for other in [sample, *([longer(sample, 2)] if dynamic else [])]:
        actual = outputs_of(program.module()(*other.args))
        assert_same_bits(actual, outputs_of(entry.function(*other.args, **other.kwargs)))
