"""Samples of signed_sqrt."""

from collections.abc import Iterator

import torch
from torch import Tensor

import pyext
from tests.entry import BadCall, Entry, Maker, Sample
from tests.layouts import laid_out
from tests.references.signed_sqrt import signed_sqrt as reference


class RoundedSqrt(torch.autograd.Function):
    """torch.sqrt, correctly rounded, as IEEE 754 has it.

    torch's own is MKL's on some processors, where 1 float in 150 is off by its last bit; whose sum
    of squared errors is the smaller is chance then.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        root = torch.sqrt(x.double()).float() if x.dtype == torch.float32 else torch.sqrt(x)
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad / (2 * ctx.saved_tensors[0])


def native(input: Tensor, eps: float = 1e-5) -> Tensor:
    return input.sign() * RoundedSqrt.apply(input.abs() + eps)


def samples(make: Maker) -> Iterator[Sample]:
    for shape in [(), (0,), (1,), (7,), (3, 0, 2), (257,), (4, 1031), (2, 3, 4, 5, 6)]:
        yield Sample("shape-" + "x".join(map(str, shape)), (make.normal(*shape),))
    for name, x in laid_out(make.normal(3, 4, 5, 6)):
        yield Sample(f"strides-{name}", (x,))
    for eps in (0.0, 1e-12, 1e-3, 1.0, 100.0):
        yield Sample(f"eps-{eps}", (make.normal(37), eps))
    edges = [0.0, -0.0, 1e-30, -1e-30, 6e-8, 65504.0, -65504.0, 1.0, -1.0]
    for eps in (0.0, 1e-5):
        yield Sample(f"edges-{eps}", (make.tensor(edges * 5), eps))
    infinite = [float("inf"), -float("inf"), float("nan"), 4.0]
    yield Sample("not-finite", (make.tensor(infinite * 9),))


def small_samples(make: Maker) -> Iterator[Sample]:
    yield Sample("matrix", (make.normal(3, 4),))
    yield Sample("eps", (make.normal(5), 0.5))
    yield Sample("scalar", (make.normal(),))
    yield Sample("transposed", (make.normal(3, 4).T,))


def large_samples(make: Maker) -> Iterator[Sample]:
    yield Sample("large", (make.normal(300_007),))
    yield Sample("large-transposed", (make.normal(555, 333).T,))


def bad_calls(make: Maker) -> Iterator[BadCall]:
    x = make.normal(3)
    yield BadCall("negative-eps", (x, -1.0), {}, ValueError, r"expected eps >= 0, got -1")
    yield BadCall("nan-eps", (x, float("nan")), {}, ValueError, r"expected eps >= 0, got nan")
    yield BadCall("complex", (x.to(torch.complex64),), {}, NotImplementedError, r"ComplexFloat")


ENTRIES = [
    Entry(
        op="signed_sqrt",
        function=pyext.signed_sqrt,
        reference=reference,
        native=native,
        samples=samples,
        small_samples=small_samples,
        large_samples=large_samples,
        bad_calls=bad_calls,
        extra_bytes=lambda sample: 2 * sample.args[0].nbytes + 1024,  # the result, the gradient
        saved_bytes=lambda sample: 0,  # the result itself
        in_place=pyext.signed_sqrt_,
        has_out=True,
        saves_result=True,
    )
]
