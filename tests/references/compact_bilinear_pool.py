"""Tensor Sketch by its definition: count sketches, convolved in a circle at every position."""

from __future__ import annotations

import torch
from torch import Tensor

from pyext.ops.compact_bilinear_pool import TensorSketch, tensor_sketch


def count_sketch(x: Tensor, places: Tensor, signs: Tensor, output_dim: int) -> Tensor:
    """(N, D, S) to (N, S, d): every channel added to its place, with its sign."""
    matrix = torch.nn.functional.one_hot(places, output_dim) * signs.unsqueeze(1)
    return x.mT @ matrix.to(x.dtype)


def compact_bilinear_pool(
    x: Tensor,
    y: Tensor | None = None,
    output_dim: int = 8192,
    *,
    seed: int = 0,
    sketch: TensorSketch | None = None,
) -> Tensor:
    x = x.flatten(2)
    y = x if y is None else y.flatten(2)
    if sketch is None:
        sketch = tensor_sketch(x.shape[1], y.shape[1], output_dim, seed=seed, device=x.device)
    a = count_sketch(x, sketch.hash1, sketch.sign1, output_dim)
    b = count_sketch(y, sketch.hash2, sketch.sign2, output_dim)
    if not a.numel():  # which torch's transforms refuse
        return (a * b).sum(1)
    return torch.fft.irfft(torch.fft.rfft(a) * torch.fft.rfft(b), n=output_dim).sum(1)
