"""Cases of bilinear pooling, written in torch as bmm, a signed root and F.normalize."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pyext
from benchmarks.case import BEST, COMPILED, EAGER, OURS, Case, Target
from benchmarks.passes import Function, Way, Work

EPS = 1e-5

Shape = tuple[int, ...]
Ratios = tuple[float, float]

# Samples, channels, height, width: times as fast as eager and as torch.compile, in the forward pass
# and in both.
TARGETS: dict[Shape, tuple[Ratios | None, Ratios | None]] = {
    (32, 512, 28, 28): ((3, 1.8), (3, 1.7)),
    (64, 512, 14, 14): ((3, 1.8), (3, 1.7)),
    (16, 256, 28, 28): (None, (2, 1.7)),
    (8, 128, 7, 7): (None, (4, 3)),
    (64, 512, 28, 28): (None, None),  # of the bilinear CNNs on images of 448 x 448
}
SMALL, LARGE = (8, 128, 7, 7), (32, 512, 28, 28)
VARIANTS = (16, 256, 28, 28)  # whose other forms are shown

TIME = 0.5  # of the usual for a case
HALF = 2e-2  # the tolerance in bfloat16, to which torch rounds after every op


def cases(device: str) -> list[Case]:
    """The sizes in the forward pass and in both, then the other forms in both."""
    found = [_symmetric(shape).forward(**_options(shape, 0)) for shape in TARGETS]
    found += [_symmetric(shape).forward_backward(**_options(shape, 1)) for shape in TARGETS]
    found += [work.forward_backward(time_share=TIME) for work in _variants()]
    half = _symmetric(VARIANTS, torch.bfloat16)
    found.append(half.forward_backward(time_share=TIME, tolerance=HALF))
    return found if device == "cpu" else [case.without_targets() for case in found]


def rectified(shape: Shape) -> Tensor:
    """Features as the ReLU of a layer leaves them.

    Their products are not near zero, where the signed root jumps: there the rounding of one sum or
    another would decide what the result is.
    """
    return torch.randn(shape).relu_()


def sizes(shape: Shape) -> str:
    """For people."""
    return " x ".join(map(str, shape))


def upper_triangle(matrices: Tensor) -> Tensor:
    """The packed form: row by row, off-diagonal values times the root of 2."""
    size = matrices.size(-1)
    rows, columns = torch.triu_indices(size, size, device=matrices.device)
    upper = matrices.flatten(1).index_select(1, rows * size + columns)
    return upper * torch.where(rows == columns, 1.0, 2**0.5)


def _products(x: Tensor, y: Tensor) -> Tensor:
    return torch.bmm(x.flatten(2), y.flatten(2).mT) / x[0, 0].numel()


def _rooted(products: Tensor) -> Tensor:
    return torch.sign(products) * torch.sqrt(products.abs() + EPS)


def _normed(values: Tensor) -> Tensor:
    return F.normalize(values.flatten(1)).view_as(values)


def _native(x: Tensor) -> Tensor:
    return _normed(_rooted(_products(x, x)))


def _by_einsum(x: Tensor) -> Tensor:
    x = x.flatten(2)
    return _normed(_rooted(torch.einsum("bdn,ben->bde", x, x) / x.size(2)))


def _on_temporaries(x: Tensor) -> Tensor:
    x = x.flatten(2)
    products = torch.bmm(x, x.mT).div_(x.size(2))
    sign = products.sign()
    roots = products.abs_().add_(EPS).sqrt_().mul_(sign)
    return roots.div_(roots.flatten(1).norm(dim=1).clamp_min_(1e-12)[:, None, None])


def _packed(x: Tensor) -> Tensor:
    return _normed(upper_triangle(_rooted(_products(x, x))))


def _centred(x: Tensor) -> Tensor:
    x = x.flatten(2)
    x = x - x.mean(2, keepdim=True)
    return _normed(_products(x, x))


def _two_inputs(x: Tensor, y: Tensor) -> Tensor:
    return _normed(_rooted(_products(x, y)))


def _symmetric(shape: Shape, dtype: torch.dtype = torch.float32) -> Work:
    """Pooling of a tensor with itself: one triangle forward, (dG + dG^T) X backward."""
    samples, channels, height, width = shape
    multiplies = samples * channels * channels * height * width
    return Work(
        op="bilinear_pool",
        name=sizes(shape) if dtype == torch.float32 else f"{sizes(shape)}, bfloat16",
        shapes=[shape],
        result=(samples, channels, channels),
        ways=[
            Way(EAGER, _native),
            Way(BEST, _on_temporaries, note="in place on the temporaries", backward=False),
            Way("torch.einsum", _by_einsum),
            Way(OURS, pyext.bilinear_pool),
        ],
        flops=(multiplies, 2 * multiplies),
        operand=rectified,
        result_passes=3,
        dtype=dtype,
        compiles=dtype == torch.float32,
    )


def _variants() -> list[Work]:
    samples, channels, height, width = VARIANTS
    base = _symmetric(VARIANTS)
    triangle = (samples, channels * (channels + 1) // 2)
    other = (samples, channels // 2, height, width)
    multiplies = samples * channels * other[1] * height * width

    def variant(suffix: str, native: Function, ours: Function, **changes: Any) -> Work:
        ways = [Way(EAGER, native), Way(OURS, ours)]
        name = f"{base.name}, {suffix}"
        return replace(base, name=name, ways=ways, compiles=False, **changes)

    pool = pyext.bilinear_pool
    return [
        variant("packed", _packed, partial(pool, packed=True), result=triangle),
        # Centred features have products near zero, so the root is left out.
        variant("centred, no root", _centred, partial(pool, center=True, normalize=("l2",))),
        variant(
            f"with {sizes(other)}",
            _two_inputs,
            pool,
            shapes=[VARIANTS, other],
            result=(samples, channels, other[1]),
            flops=(2 * multiplies, 4 * multiplies),
        ),
    ]


def _options(shape: Shape, index: int) -> dict[str, Any]:
    """Of the forward case (0) or the one of both passes (1)."""
    ratios = TARGETS[shape][index]
    promises = zip((EAGER, COMPILED), ratios or (), strict=ratios is not None)
    return {
        "targets": [Target(versus, ratio) for versus, ratio in promises],
        "time_share": TIME,
        "quick": shape == SMALL and index == 1,
        "headline": shape == LARGE or (index == 1 and ratios is not None),
    }
