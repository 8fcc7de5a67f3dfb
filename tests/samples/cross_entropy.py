"""Samples of cross_entropy and mixup_cross_entropy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pyext
from tests.entry import Entry, Maker, Sample
from tests.layouts import laid_out
from tests.references import cross_entropy as reference
from tests.samples.cross_entropy_bad import bad_calls, bad_mixups

CONVENTIONS = ("uniform", "others", "lsr")


def native(input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any) -> Any:
    known = {"ignore_index", "reduction", "label_smoothing"}
    smoothing = options.get("label_smoothing", 0.0)
    if not options.keys() <= known or isinstance(smoothing, Tensor):
        return NotImplemented
    if not target.is_floating_point():
        target = target.long()
    return F.cross_entropy(input, target, weight, **options)


def native_mixup(
    input: Tensor, a: Tensor, b: Tensor, lam: float | Tensor, *rest: Any, **options: Any
) -> Any:
    losses = [native(input, target, *rest, **options) for target in (a, b)]
    if NotImplemented in losses or isinstance(lam, Tensor):
        return NotImplemented
    return lam * losses[0] + (1 - lam) * losses[1]


def samples(make: Maker) -> Iterator[Sample]:
    yield from _shapes(make)
    yield from _strides(make)
    yield from _options(make, make.normal(33, 10, scale=2), make.indices(10, 33))
    yield from _edges(make)
    x, y = make.normal(5, 4), make.index_tensor([2] * 5)
    for reduction in ("mean", "sum", "none"):
        options = {"ignore_index": 2, "reduction": reduction, "label_smoothing": 0.1}
        yield Sample(f"all-ignored-{reduction}", (x, y), options)


def _shapes(make: Maker) -> Iterator[Sample]:
    # A vector holds up to 16 classes, few classes are walked in columns of up to 64 rows, and long
    # rows go in blocks of a few thousand classes.
    shapes = [(1, 1), (1, 2), (5, 3), (8, 10), (65, 7), (130, 32), (7, 33), (9, 100), (3, 1000)]
    shapes += [(2, 9001), (2, 8192)]
    for n, c in shapes:
        args = make.normal(n, c), make.indices(c, n)
        yield Sample(f"shape-{n}x{c}", args, {"label_smoothing": 0.1})
    yield Sample("shape-C", (make.normal(12), make.indices(12)), {"label_smoothing": 0.1})
    for shape in [(2, 5, 3), (2, 3, 4, 5), (2, 40, 9), (3, 2, 1, 70), (2, 3, 2, 2, 2, 3)]:
        args = make.normal(*shape), make.indices(shape[1], shape[0], *shape[2:])
        yield Sample("shape-" + "x".join(map(str, shape)), args, {"label_smoothing": 0.1})
    for reduction in ("mean", "sum", "none"):
        for shape in [(0, 4), (2, 4, 0)]:
            args = make.normal(*shape), make.indices(4, shape[0], *shape[2:])
            name = f"empty-{'x'.join(map(str, shape))}-{reduction}"
            yield Sample(name, args, {"reduction": reduction})


def _strides(make: Maker) -> Iterator[Sample]:
    for shape in [(20, 6), (9, 50), (3, 5, 4, 3), (2, 40, 3, 3)]:
        target = make.indices(shape[1], shape[0], *shape[2:])
        probabilities = make.probabilities(*shape)
        size = "x".join(map(str, shape))
        for name, x in laid_out(make.normal(*shape)):
            yield Sample(f"strides-{size}-{name}", (x, target), {"label_smoothing": 0.1})
        x = make.normal(*shape)
        for name, q in laid_out(probabilities):
            yield Sample(f"probabilities-{size}-{name}", (x, q), {"label_smoothing": 0.1})
        for name, y in laid_out(target):
            yield Sample(f"target-{size}-{name}", (x, y), {"reduction": "none"})
    x, y = make.normal(6, 5), make.indices(5, 6)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        yield Sample(f"target-{str(dtype).split('.')[1]}", (x, y.to(dtype)))
    for name, w in laid_out(make.uniform(5)):
        yield Sample(f"weight-{name}", (x, y, w))


def _options(make: Maker, x: Tensor, y: Tensor) -> Iterator[Sample]:
    """Every option of cross_entropy on logits x (N, C, ...) and class indices y."""
    n, c = x.shape[:2]
    ignored = torch.where(make.indices(3, *y.shape) == 0, 1, y)
    weight = make.uniform(c) + 0.1
    for reduction in ("mean", "sum", "none"):
        yield Sample(f"plain-{reduction}", (x, y), {"reduction": reduction})
        options = {"reduction": reduction, "ignore_index": 1, "label_smoothing": 0.2}
        yield Sample(f"weight-ignored-{reduction}", (x, ignored, weight), options)
        yield Sample(f"z-loss-{reduction}", (x, ignored), {**options, "z_loss": 0.01})
    for smoothing in CONVENTIONS:
        for e in (0.1, 1.0):
            options = {"smoothing": smoothing, "label_smoothing": e}
            yield Sample(f"{smoothing}-{e}", (x, y), options)
        options = {"smoothing": smoothing, "label_smoothing": 0.3, "ignore_index": 1}
        yield Sample(f"{smoothing}-weight", (x, ignored, weight), options)
        each = make.uniform(n)
        each[0] = 0
        options = {"smoothing": smoothing, "label_smoothing": each}
        yield Sample(f"{smoothing}-per-sample", (x, y), options)
    prior = make.probabilities(c, axis=0)
    yield Sample("prior", (x, y), {"smoothing": prior, "label_smoothing": 0.2})
    yield Sample("prior-weight", (x, y, weight), {"smoothing": prior, "label_smoothing": 0.2})
    yield Sample("per-row", (x, y), {"label_smoothing": make.uniform(*y.shape)})
    yield Sample("logit-scale", (x, y), {"logit_scale": 2.5, "label_smoothing": 0.1})
    yield Sample("softcap", (x, y), {"softcap": 3.0, "logit_scale": 0.5, "label_smoothing": 0.1})
    for name, options in {
        "stats": {},
        "stats-softcap": {"softcap": 3.0, "z_loss": 0.1, "label_smoothing": 0.1},
        "stats-ignored": {"ignore_index": 1, "reduction": "none"},
    }.items():
        yield Sample(name, (x, ignored), {"return_stats": True, **options})
    q = make.probabilities(*x.shape)
    both = (0, 1)
    for reduction in ("mean", "sum", "none"):
        yield Sample(f"probabilities-{reduction}", (x, q), {"reduction": reduction}, grad=both)
    for smoothing in (*CONVENTIONS, prior):
        name = "prior" if isinstance(smoothing, Tensor) else smoothing
        options = {"smoothing": smoothing, "label_smoothing": 0.2, "z_loss": 0.01}
        yield Sample(f"probabilities-{name}", (x, q, weight), options, grad=both)
    yield Sample("probabilities-stats", (x, q), {"return_stats": True}, grad=both)
    options = {"softcap": 3.0, "reduction": "none"}
    yield Sample("probabilities-softcap", (x, q), options, grad=both)


def _edges(make: Maker) -> Iterator[Sample]:
    inf, nan = float("inf"), float("nan")
    for name, e, masked in [("", 0.0, False), ("-smoothed", 0.1, False), ("-masked", 0.1, True)]:
        for c in (6, 40):  # walked by columns, and along the row
            x = make.normal(9, c)
            x[:, 3:5] = -inf
            y = torch.arange(9) % 3
            y[-1] = 3  # a target that cannot be
            options = {"label_smoothing": e, "masked": masked, "reduction": "none"}
            yield Sample(f"minus-inf{name}-{c}", (x, y.to(x.device)), options)
    prior = make.tensor([0.5, 0.5, 0.0, 0.0])
    x = make.tensor([[1.0, 2.0, -inf, -inf], [0.0, 1.0, 2.0, -inf]])
    options = {"smoothing": prior, "label_smoothing": 0.1, "reduction": "none"}
    yield Sample("prior-of-zero-at-minus-inf", (x, make.index_tensor([0, 1])), options)
    options = {**options, "masked": True}
    yield Sample("prior-masked", (x, make.index_tensor([0, 1])), options)
    options = {"label_smoothing": 0.1, "reduction": "none"}
    args = (x, make.index_tensor([0, 1]), make.tensor([0.5, 1.0, 2.0, 0.0]))
    yield Sample("weight-of-zero-at-minus-inf", args, {**options, "masked": True})
    for c in (6, 40):
        x = make.normal(9, c)
        x[0], x[1], x[2, 1], x[3, 2], x[4] = nan, -inf, nan, inf, inf
        y = make.index_tensor([0, 1, 2, 3, 0, -100, -100, 1, 2])
        x[5] = nan
        x[6] = inf
        yield Sample(f"not-finite-{c}", (x, y), {"reduction": "none"})
        x, y = x.clone(), y.clamp(min=0)
        x[3], x[4], x[6] = 0, -inf, 1  # what lse is of a logit of inf is left open
        options = {"reduction": "none", "return_stats": True}
        yield Sample(f"not-finite-stats-{c}", (x, y), options)
        x = make.normal(12, c, scale=1000.0)
        yield Sample(f"large-logits-{c}", (x, make.indices(c, 12)), {"reduction": "none"})
        x = make.normal(12, c) + 1000.0
        yield Sample(f"offset-logits-{c}", (x, make.indices(c, 12)), {"label_smoothing": 0.1})
        x = make.tensor(torch.zeros(12, c))
        yield Sample(f"equal-logits-{c}", (x, make.indices(c, 12)), {"label_smoothing": 0.1})


def small_samples(make: Maker) -> Iterator[Sample]:
    yield from _options(make, make.normal(4, 5), make.indices(5, 4))
    yield Sample("K-dim", (make.normal(4, 3, 2), make.indices(3, 4, 2)), {"label_smoothing": 0.1})
    yield Sample("transposed", (make.normal(5, 4).T, make.indices(5, 4)), {"reduction": "none"})
    options = {"label_smoothing": 0.1}
    yield Sample("row", (make.normal(5), make.indices(5)), options, rows=False)


def large_samples(make: Maker) -> Iterator[Sample]:
    def pair(*shape: int) -> tuple[Tensor, Tensor]:
        return make.normal(*shape), make.indices(shape[1], shape[0], *shape[2:])

    yield Sample("large-rows", pair(41, 9001), {"label_smoothing": 0.1})
    yield Sample("large-columns", pair(30011, 10), {"label_smoothing": 0.1})
    yield Sample("large-strided", pair(3, 19, 77, 79), {"label_smoothing": 0.1})
    x, y = pair(301, 997)
    transposed = x.T.contiguous().T
    yield Sample("large-transposed", (transposed, y.int()), {"reduction": "none"})
    options = {"softcap": 5.0, "z_loss": 0.01, "label_smoothing": make.uniform(301)}
    yield Sample("large-options", (x, y, make.uniform(997)), options)
    yield Sample("large-stats", pair(301, 997), {"return_stats": True, "reduction": "none"})
    x, _ = pair(301, 997)
    yield Sample("large-probabilities", (x, make.probabilities(301, 997)), grad=(0, 1))


def mixups(make: Maker, n: int, c: int) -> Iterator[Sample]:
    x, a, b = make.normal(n, c), make.indices(c, n), make.indices(c, n)
    ignored_a, ignored_b = (torch.where(make.indices(3, n) == 0, 1, y) for y in (a, b))
    weight = make.uniform(c) + 0.1
    for reduction in ("mean", "sum", "none"):
        yield Sample(f"plain-{reduction}", (x, a, b, 0.3), {"reduction": reduction})
        options = {"reduction": reduction, "ignore_index": 1, "label_smoothing": 0.2}
        args = (x, ignored_a, ignored_b, 0.3, weight)
        yield Sample(f"weight-ignored-{reduction}", args, options)
        yield Sample(f"z-loss-{reduction}", args, {**options, "z_loss": 0.1})
        each = make.uniform(n)
        yield Sample(f"per-sample-{reduction}", (x, ignored_a, b, each, weight), options)
    for lam in (0.0, 1.0):
        yield Sample(f"lam-{lam}", (x, a, b, lam), {"label_smoothing": 0.1})
    for smoothing in CONVENTIONS:
        options = {"smoothing": smoothing, "label_smoothing": 0.2, "softcap": 4.0}
        yield Sample(smoothing, (x, a, b, 0.6), options)
    yield Sample("stats", (x, ignored_a, b, 0.6), {"return_stats": True, "ignore_index": 1})
    x = x.clone()
    x[:, 2] = -float("inf")
    a, b = (torch.where(y == 2, 0, y) for y in (a, b))
    yield Sample("masked", (x, a, b, 0.6), {"masked": True, "label_smoothing": 0.2})


def mixup_samples(make: Maker) -> Iterator[Sample]:
    yield from mixups(make, 33, 10)
    x, y = make.normal(2, 5, 9), make.indices(5, 2, 9)
    yield Sample("K-dim", (x, y, y.flip(1), make.uniform(2)), {"label_smoothing": 0.1})
    yield Sample("K-dim-per-row", (x, y, y.flip(1), make.uniform(2, 9)))


def small_mixups(make: Maker) -> Iterator[Sample]:
    for sample in mixups(make, 4, 5):
        if sample.name != "masked":  # no numerical derivative at -inf
            yield sample


def large_mixups(make: Maker) -> Iterator[Sample]:
    x, y = make.normal(301, 997), make.indices(997, 301)
    yield Sample("large", (x, y, y.flip(0), make.uniform(301)), {"label_smoothing": 0.1})


def rows_of(sample: Sample) -> int:
    x = sample.args[0]
    return x.numel() // x.shape[1]


def extra_bytes(sample: Sample) -> int:
    """One N x C buffer, the gradient; a few numbers per row; and scraps.

    CUDA's allocator hands out 512 bytes at least.
    """
    return sample.args[0].nbytes + 64 * rows_of(sample) + 8192


def saved_bytes(sample: Sample) -> int:
    """One double per row and the same for the entropy."""
    return 16 * rows_of(sample)


ENTRIES = [
    Entry(
        op="cross_entropy",
        function=pyext.cross_entropy,
        reference=reference.cross_entropy,
        native=native,
        samples=samples,
        small_samples=small_samples,
        large_samples=large_samples,
        bad_calls=bad_calls,
        extra_bytes=extra_bytes,
        saved_bytes=saved_bytes,
    ),
    Entry(
        op="cross_entropy",
        function=pyext.mixup_cross_entropy,
        reference=reference.mixup_cross_entropy,
        native=native_mixup,
        samples=mixup_samples,
        small_samples=small_mixups,
        large_samples=large_mixups,
        bad_calls=bad_mixups,
        extra_bytes=extra_bytes,
        saved_bytes=saved_bytes,
    ),
]
