"""Cases of compact bilinear pooling, which is defined by Fourier transforms of count sketches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pyext
from benchmarks.bench_bilinear_pool import rectified, sizes
from benchmarks.case import BEST, COMPILED, EAGER, OURS, Case, Target
from benchmarks.passes import Way, Work, compiled

Shape = tuple[int, ...]

OVER_FFT = 5

PAGE, PAPER, SMALL = (32, 512, 28, 28), (128, 512, 14, 14), (8, 128, 7, 7)
TIME = 0.25  # of the usual for a case: the transforms take long anyway


def cases(device: str) -> list[Case]:
    """Two sizes that networks have, and one for a quick look."""
    page, paper = _work(PAGE, 8192), _work(PAPER, 8000)
    promise: dict[str, Any] = {
        "targets": [Target(EAGER, OVER_FFT)],
        "headline": True,
        "time_share": TIME,
    }
    found = [
        page.forward(**promise),
        page.forward_backward(**promise),
        paper.forward(time_share=TIME),
        paper.forward_backward(time_share=TIME),
        _work(SMALL, 1024).forward_backward(time_share=TIME, quick=True),
    ]
    return found if device == "cpu" else [case.without_targets() for case in found]


def _work(shape: Shape, output_dim: int) -> Work:
    samples, channels, height, width = shape
    multiplies = samples * channels * channels * height * width

    def by_transform(x: Tensor, *sketch: Tensor) -> Tensor:
        return _by_transform(x.flatten(2).mT, output_dim, *sketch)

    def by_scatter(x: Tensor, *sketch: Tensor) -> Tensor:
        return _by_scatter(x.flatten(2), output_dim, *sketch)

    def ours(x: Tensor, *sketch: Tensor) -> Tensor:
        return pyext.compact_bilinear_pool(
            x, output_dim=output_dim, sketch=pyext.TensorSketch(*sketch)
        )

    return Work(
        op="compact_bilinear_pool",
        name=f"{sizes(shape)} -> {output_dim}",
        shapes=[shape],
        result=(samples, output_dim),
        ways=[
            Way(EAGER, by_transform, note="FFT, summed before the inverse"),
            Way(BEST, by_scatter, note="torch.einsum, scatter_add: no FFT"),
            Way(COMPILED, compiled(by_scatter), note="of native best: no complex numbers"),
            Way(OURS, ours),
        ],
        # As in bilinear pooling: where the products go costs nothing beside them.
        flops=(multiplies, 2 * multiplies),
        operand=rectified,
        constants=lambda device: list(
            pyext.tensor_sketch(channels, output_dim=output_dim, device=device)
        ),
        compiles=False,
    )


def _by_transform(
    x: Tensor, output_dim: int, hash1: Tensor, sign1: Tensor, hash2: Tensor, sign2: Tensor
) -> Tensor:
    """The definition, but the sum over positions (N, S, D) is of spectra: one inverse a sample."""

    def spectrum(hashes: Tensor, signs: Tensor) -> Tensor:
        sketch = x.new_zeros(*x.shape[:2], output_dim)
        return torch.fft.rfft(sketch.scatter_add_(2, hashes.expand(x.shape), x * signs))

    product = spectrum(hash1, sign1) * spectrum(hash2, sign2)
    return torch.fft.irfft(product.sum(1), n=output_dim)


def _by_scatter(
    x: Tensor, output_dim: int, hash1: Tensor, sign1: Tensor, hash2: Tensor, sign2: Tensor
) -> Tensor:
    products = torch.einsum("bdn,ben->bde", x, x) * (sign1[:, None] * sign2)
    places = ((hash1[:, None] + hash2) % output_dim).flatten()
    values = products.flatten(1)
    return x.new_zeros(x.size(0), output_dim).scatter_add_(1, places.expand(values.shape), values)
