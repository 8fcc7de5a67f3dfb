"""Calls of cross_entropy that must raise: the table of bad input on its page, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tests.entry import BadCall, Maker


def bad_calls(make: Maker) -> Iterator[BadCall]:
    x, y = make.normal(4, 5), make.index_tensor([0, 1, 2, 3])
    q = make.probabilities(4, 5)

    def bad(name: str, *args: Any, error: type[Exception], says: str, **kwargs: Any) -> BadCall:
        return BadCall(name, args, kwargs, error, says)

    # Class indices out of range: row, value and C are named.
    for value in (5, -1, -101, 2**40):
        out = make.index_tensor([0, value, 2, 3])
        says = rf"target {value} of row 1 .* 5 classes"
        yield bad(f"index-{value}", x, out, validate=True, error=IndexError, says=says)
    out = make.index_tensor([0, 1, 2, 255], torch.uint8)
    says = r"target 255 of row 3 .* 5 classes"
    yield bad("index-uint8", x, out, validate=True, error=IndexError, says=says)
    out = make.index_tensor([[0, 1], [7, 1]])
    says = r"target 7 of row 2 .* 3 classes"
    yield bad("index-K-dim", make.normal(2, 3, 2), out, validate=True, error=IndexError, says=says)

    for e in (-0.1, 1.1, float("nan"), float("inf")):
        says = rf"label_smoothing in \[0, 1\], got {e}"
        yield bad(f"smoothing-{e}", x, y, label_smoothing=e, error=ValueError, says=says)
    for values in ([0.1, 0.2, 1.5, 0.0], [0.1, float("nan"), 0.1, 0.1]):
        e = make.tensor(values)
        says = r"every label_smoothing in \[0, 1\]"
        name = f"smoothing-rows-{values[1]}"
        yield bad(name, x, y, label_smoothing=e, validate=True, error=ValueError, says=says)
    says = r"label_smoothing .*per sample or row, shape \[4\] or \[4\], got \[3\]"
    yield bad("smoothing-shape", x, y, label_smoothing=make.uniform(3), error=ValueError, says=says)
    says = r"label_smoothing to be floating point, got Long"
    yield bad("smoothing-dtype", x, y, label_smoothing=y, error=TypeError, says=says)

    says = r"reduction to be 'mean', 'sum' or 'none', got 'avg'"
    yield bad("reduction", x, y, reduction="avg", error=ValueError, says=says)
    says = r"smoothing to be 'uniform', 'others', 'lsr' or a tensor .* got 'even'"
    yield bad("convention", x, y, smoothing="even", error=ValueError, says=says)
    for smoothing in ("others", "lsr"):
        says = rf"two classes or more for smoothing='{smoothing}', got input of shape \[4, 1\]"
        one = make.normal(4, 1), y * 0
        yield bad(f"one-class-{smoothing}", *one, smoothing=smoothing, error=ValueError, says=says)

    # Shapes that do not fit.
    says = r"target of shape \[4\] for input of shape \[4, 5\], got \[3\]"
    yield bad("target-shape", x, y[:3], error=ValueError, says=says)
    yield bad("target-2d", x, y[:, None], error=ValueError, says=r"target of shape \[4\]")
    says = r"target of shape \[2, 3\] for input of shape \[2, 5, 3\], got \[2, 4\]"
    args = make.normal(2, 5, 3), make.indices(5, 2, 4)
    yield bad("target-K-dim", *args, error=ValueError, says=says)
    says = r"weight with one value per class, shape \[5\], got \[4\]"
    yield bad("weight-shape", x, y, make.uniform(4), error=ValueError, says=says)
    says = r"smoothing with one value per class, shape \[5\], got \[6\]"
    yield bad("prior-shape", x, y, smoothing=make.uniform(6), error=ValueError, says=says)
    yield bad("scalar-input", x[0, 0], y[0], error=ValueError, says=r"input of shape \(C\)")
    yield bad("no-classes", x[:, :0], y, error=ValueError, says=r"at least one class")

    # Dtypes that do not fit.
    says = r"class indices .* got Float of shape \[4\]"
    yield bad("float-target", x, y.float(), error=TypeError, says=says)
    yield bad("bool-target", x, y > 1, error=TypeError, says=r"target .*got Bool")
    yield bad("integer-input", x.long(), y, error=TypeError, says=r"floating-point input, got Long")
    yield bad(
        "complex-input", x + 0j, y, error=TypeError, says=r"floating-point input, got Complex"
    )
    says = r"weight to be floating point, got Long"
    yield bad("weight-dtype", x, y, y.new_ones(5), error=TypeError, says=says)
    says = r"floating-point out_dtype, got Int"
    yield bad("out-dtype", x, y, out_dtype=torch.int32, error=TypeError, says=says)

    says = r"ignore_index has no meaning for class probabilities, got 2"
    yield bad("ignore-probabilities", x, q, ignore_index=2, error=ValueError, says=says)
    yield bad("z-loss", x, y, z_loss=-1.0, error=ValueError, says=r"z_loss >= 0, got -1")
    yield bad(
        "z-loss-nan", x, y, z_loss=float("nan"), error=ValueError, says=r"z_loss >= 0, got nan"
    )
    says = r"finite logit_scale, got inf"
    yield bad("logit-scale", x, y, logit_scale=float("inf"), error=ValueError, says=says)
    for cap in (0.0, -1.0, float("nan")):
        says = rf"softcap > 0, got {cap:g}"
        yield bad(f"softcap-{cap}", x, y, softcap=cap, error=ValueError, says=says)


def bad_mixups(make: Maker) -> Iterator[BadCall]:
    x, y = make.normal(4, 5), make.index_tensor([0, 1, 2, 3])
    for lam in (-0.1, 1.5, float("nan")):
        says = rf"lam in \[0, 1\], got {lam}"
        yield BadCall(f"lam-{lam}", (x, y, y, lam), {}, ValueError, says)
    rows = make.tensor([0.1, 2.0, 0.3, 0.4])
    says = r"every lam in \[0, 1\]"
    yield BadCall("lam-rows", (x, y, y, rows), {"validate": True}, ValueError, says)
    yield BadCall(
        "lam-shape", (x, y, y, rows[:2]), {}, ValueError, r"lam with one value per sample"
    )
    says = r"target_b of shape \[4\] .* got \[3\]"
    yield BadCall("target_b-shape", (x, y, y[:3], 0.5), {}, ValueError, says)
    says = r"target_b to hold class indices"
    yield BadCall("target_b-dtype", (x, y, y.float(), 0.5), {}, TypeError, says)
    out = make.index_tensor([0, 1, 9, 3])
    says = r"target_b 9 of row 2 .* 5 classes"
    yield BadCall("target_b-range", (x, y, out, 0.5), {"validate": True}, IndexError, says)
    q = make.probabilities(4, 5)
    yield BadCall("probabilities", (x, q, y, 0.5), {}, ValueError, r"class indices in both targets")
