"""Bilinear forms with every product of three factors written out."""

from __future__ import annotations

from torch import Tensor


def bilinear(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    products = x1[..., None, :, None] * weight * x2[..., None, None, :]  # (*, O, I, J)
    result = products.sum((-2, -1))
    return result if bias is None else result + bias


def biaffine(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return bilinear(x1.unsqueeze(-2), x2.unsqueeze(-3), weight, bias)
