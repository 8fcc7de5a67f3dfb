"""Samples of bilinear and biaffine. Sums are short, or of numbers that do not cancel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import pyext
from tests.entry import BadCall, Entry, Maker, Sample
from tests.layouts import laid_out
from tests.memory import contraction_scratch
from tests.references import bilinear as reference


def call(make: Maker, name: str, x1: Tensor, x2: Tensor, outputs: int, bias: bool) -> Sample:
    args = [x1, x2, make.normal(outputs, x1.shape[-1], x2.shape[-1])]
    if bias:
        args.append(make.normal(outputs))
    return Sample(name, tuple(args), grad=tuple(range(len(args))), rows=x1.dim() > 1)


# ---- bilinear ----


def samples(make: Maker) -> Iterator[Sample]:
    sizes = [(33, 5, 7, 11), (1, 4, 6, 4), (17, 1, 8, 3), (17, 8, 1, 3), (9, 7, 5, 1)]
    sizes += [(65, 17, 3, 16), (4, 2, 33, 37), (1, 1, 1, 1), (131, 6, 6, 2)]
    for b, i, j, o in sizes:
        for bias in (True, False):
            name = f"shape-{b}x{i}x{j}x{o}" + "-bias" * bias
            yield call(make, name, make.normal(b, i), make.normal(b, j), o, bias)
    for leading in [(), (2, 3), (3, 1, 5, 2), (0,), (2, 0)]:
        name = "leading-" + "x".join(map(str, leading))
        yield call(make, name, make.normal(*leading, 4), make.normal(*leading, 5), 3, True)
    yield call(make, "no-outputs", make.normal(3, 6), make.normal(3, 5), 0, True)
    x1, x2, weight = make.normal(2, 9, 6), make.normal(2, 9, 5), make.normal(7, 6, 5)
    for name, x in laid_out(x1):
        yield Sample(f"strides-input1-{name}", (x, x2, weight), grad=(0, 1, 2))
    for name, x in laid_out(x2):
        yield Sample(f"strides-input2-{name}", (x1, x, weight), grad=(0, 1, 2))
    for name, x in laid_out(weight):
        yield Sample(f"strides-weight-{name}", (x1, x2, x), grad=(0, 1, 2))
    yield call(make, "with-itself", x1, x1, 4, True)


def small_samples(make: Maker) -> Iterator[Sample]:
    yield call(make, "bias", make.normal(3, 2), make.normal(3, 2), 4, True)
    yield call(make, "no-bias", make.normal(3, 2), make.normal(3, 1), 2, False)
    yield call(make, "leading", make.normal(3, 2, 2), make.normal(3, 2, 2), 2, True)
    yield call(make, "one", make.normal(3), make.normal(2), 2, True)


def large_samples(make: Maker) -> Iterator[Sample]:
    x1, x2 = make.normal(301, 8), make.normal(301, 64)
    yield call(make, "large", x1, x2, 29, True).map(lambda x: x.abs() / 4)


def bad_calls(make: Maker) -> Iterator[BadCall]:
    x1, x2, weight, bias = (
        make.normal(2, 3),
        make.normal(2, 4),
        make.normal(5, 3, 4),
        make.normal(5),
    )
    tall = make.normal(2, 6, 3)
    for name, args, says in [
        ("ranks", (tall, x2, weight), r"input dimensions do not match: got 3 and 2"),
        ("batch", (x1, make.normal(3, 4), weight), r"do not match at dim 0: got 2 and 3"),
        ("batch-of-one", (x1[:1], x2, weight), r"do not match at dim 0: got 1 and 2"),
        ("input1", (x2, x2, weight), r"input1 size does not match .* got 4 but expected 3"),
        ("input2", (x1, x1, weight), r"input2 size does not match .* got 3 but expected 4"),
        ("bias", (x1, x2, weight, bias[:4]), r"bias size .* got 4 but expected 5"),
        ("bias-matrix", (x1, x2, weight, bias[None]), r"bias size .* got \[1, 5\] but expected 5"),
        ("number", (x1[0, 0], x2[0], weight), r"input1 of at least 1 dimensions, got \[\]"),
        ("weight", (x1, x2, weight[0]), r"weight of shape \(O, I, J\), got \[3, 4\]"),
        ("dtypes", (x1.double(), x2, weight), r"same dtype, got input1: torch.float64"),
        ("dtypes-bias", (x1, x2, weight, bias.double()), r"same dtype, .* bias: torch.float64"),
    ]:
        yield BadCall(name, args, {}, RuntimeError, says)


# ---- biaffine ----


def native_biaffine(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = torch.einsum("...xi,oij,...yj->...xyo", x1, weight, x2)
    return result if bias is None else result + bias


def biaffine_samples(make: Maker) -> Iterator[Sample]:
    sizes = [(2, 7, 9, 5, 6, 4), (3, 1, 8, 4, 7, 2), (1, 9, 5, 3, 9, 1), (2, 5, 5, 1, 1, 3)]
    for b, x, y, i, j, o in sizes:
        for bias in (True, False):
            name = f"shape-{b}x{x}x{y}x{i}x{j}x{o}" + "-bias" * bias
            yield call(make, name, make.normal(b, x, i), make.normal(b, y, j), o, bias)
    for ones, others in [
        ((), ()),
        ((2, 3), (2, 3)),
        ((2, 3), (3,)),
        ((2, 1), (1, 3)),
        ((0,), (0,)),
    ]:
        name = f"leading-{'x'.join(map(str, ones))}-{'x'.join(map(str, others))}"
        yield call(make, name, make.normal(*ones, 4, 5), make.normal(*others, 6, 3), 7, True)
    x1, x2, weight = make.normal(2, 9, 6), make.normal(2, 8, 5), make.normal(3, 6, 5)
    for name, x in laid_out(x1):
        yield Sample(f"strides-{name}", (x, x2, weight), grad=(0, 1, 2))


def small_biaffines(make: Maker) -> Iterator[Sample]:
    yield call(make, "bias", make.normal(3, 2, 2), make.normal(3, 1, 2), 2, True)
    yield call(make, "no-bias", make.normal(3, 2, 2), make.normal(3, 1, 2), 2, False)
    yield call(make, "matrices", make.normal(3, 2), make.normal(2, 1), 4, True)


def large_biaffines(make: Maker) -> Iterator[Sample]:
    x1, x2 = make.normal(5, 41, 20), make.normal(5, 37, 17)
    yield call(make, "large", x1, x2, 9, True).map(lambda x: x.abs() / 4)


def bad_biaffines(make: Maker) -> Iterator[BadCall]:
    x1, x2, weight, bias = (make.normal(*s) for s in [(2, 6, 3), (2, 7, 4), (5, 3, 4), (5,)])
    for name, args, says in [
        ("leading", (x1, make.normal(3, 7, 4), weight), r"do not broadcast: got \[2, 6, 3\] and"),
        ("vector", (x1[0, 0], x2, weight), r"input1 of at least 2 dimensions, got \[3\]"),
        ("input1", (x2, x2, weight), r"input1 size does not match .* got 4 but expected 3"),
        ("input2", (x1, x1, weight), r"input2 size does not match .* got 3 but expected 4"),
        ("bias", (x1, x2, weight, bias[:4]), r"bias size .* got 4 but expected 5"),
        ("weight", (x1, x2, weight[0]), r"weight of shape \(O, I, J\), got \[3, 4\]"),
        ("dtypes", (x1, x2.double(), weight), r"same dtype, .* input2: torch.float64"),
    ]:
        yield BadCall(name, args, {}, RuntimeError, says)


def extra_bytes(sample: Sample) -> int:
    """The result with and without the bias, the gradient, and tiles.

    16-bit numbers stay in float32 until the bias is added.
    """
    x1, x2, weight, *_ = sample.args
    results = x1.shape[:-1].numel() * weight.shape[0]
    if sample.kwargs or x1.shape[:-1] != x2.shape[:-1]:
        results *= x2.shape[-2]
    wide = 4 if x1.element_size() == 2 else 0
    item = x1.element_size() + wide
    budget = 2 * results * item + (x1.numel() + x2.numel()) * item + (1 << 20)
    return budget + contraction_scratch([x1, x2, weight], results)


def saved_bytes(sample: Sample) -> int:
    """The arguments; with a bias, one of 16 bits as float32."""
    x1, x2, *_ = sample.args
    return 4 * x2.numel() if len(sample.args) > 3 and x1.element_size() == 2 else 0


ENTRIES = [
    Entry(
        op="einsum",
        function=pyext.bilinear,
        reference=reference.bilinear,
        native=F.bilinear,
        samples=samples,
        small_samples=small_samples,
        large_samples=large_samples,
        bad_calls=bad_calls,
        extra_bytes=extra_bytes,
        saved_bytes=saved_bytes,
    ),
    Entry(
        op="einsum",
        function=pyext.biaffine,
        reference=reference.biaffine,
        native=native_biaffine,
        samples=biaffine_samples,
        small_samples=small_biaffines,
        large_samples=large_biaffines,
        bad_calls=bad_biaffines,
        extra_bytes=extra_bytes,
        saved_bytes=saved_bytes,
    ),
]
