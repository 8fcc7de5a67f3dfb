"""Bilinear pooling step by step: center, multiply, scale, root, pack, norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.references.signed_sqrt import signed_sqrt


def packed_triangle(matrices: Tensor) -> Tensor:
    """The upper triangle, row by row, with the values off the diagonal times sqrt(2)."""
    row, column = torch.triu_indices(*matrices.shape[-2:], device=matrices.device)
    return matrices[..., row, column] * torch.where(row == column, 1, 2).double().sqrt()


def unit(x: Tensor) -> Tensor:
    """Every sample over max(its norm, 1e-12), twice differentiable at 0 too."""
    squares = x.flatten(1).square().sum(1)
    tiny = squares <= 1e-24
    norm = torch.where(tiny, 1e-12, torch.where(tiny, 1.0, squares).sqrt())
    return x / norm.view(-1, *[1] * (x.dim() - 1))


def bilinear_pool(
    x: Tensor,
    y: Tensor | None = None,
    *,
    scale: float | None = None,
    eps: float = 1e-5,
    normalize: Sequence[str] = ("signed_sqrt", "l2"),
    packed: bool = False,
    center: bool = False,
) -> Tensor:
    x = x.flatten(2)
    y = x if y is None else y.flatten(2)
    if center:
        x, y = x - x.mean(2, keepdim=True), y - y.mean(2, keepdim=True)
    z = x @ y.mT * (1 / x.shape[2] if scale is None else scale)
    if "signed_sqrt" in normalize:
        z = signed_sqrt(z, eps)
    if packed:
        z = packed_triangle(z)
    return unit(z) if "l2" in normalize else z
