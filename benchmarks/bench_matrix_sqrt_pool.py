"""Cases of the matrix square root of covariances by Newton-Schulz iterations (iSQRT-COV)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import pyext
from benchmarks.bench_bilinear_pool import rectified, sizes, upper_triangle
from benchmarks.case import EAGER, OURS, Case, Target
from benchmarks.passes import Function, Way, Work

Shape = tuple[int, ...]

ITERATIONS = 5
OVER_EAGER = 1.8  # in both passes

PAGE, SMALL = (64, 256, 14, 14), (8, 64, 7, 7)
TIME = 0.5  # of the usual for a case


def cases(device: str) -> list[Case]:
    """The size of the paper, whole and packed, and one for a quick look."""
    page = _work(PAGE)
    found = [
        page.forward(time_share=TIME),
        page.forward_backward(targets=[Target(EAGER, OVER_EAGER)], time_share=TIME, headline=True),
        _work(PAGE, packed=True).forward_backward(time_share=TIME),
        _work(SMALL).forward_backward(time_share=TIME, quick=True),
    ]
    return found if device == "cpu" else [case.without_targets() for case in found]


def _work(shape: Shape, packed: bool = False) -> Work:
    samples, channels, height, width = shape
    ways = [Way(EAGER, _native)]
    if packed:
        ways = [Way(EAGER, lambda x: upper_triangle(_native(x)))]
    else:
        ways.append(Way("torch.einsum", _by_einsum))
    ours: Function = partial(pyext.matrix_sqrt_pool, iterations=ITERATIONS, packed=packed)
    triangle = (samples, channels * (channels + 1) // 2)
    # Products of symmetric matrices that commute are symmetric, and half of each is enough. The
    # first iteration has one, the last two, the others three; each has two for its derivative.
    covariance = samples * channels * channels * height * width
    iterations = samples * channels**3 * (3 * ITERATIONS - 3)
    return Work(
        op="matrix_sqrt_pool",
        name=f"{sizes(shape)}, {ITERATIONS} iterations" + (", packed" if packed else ""),
        shapes=[shape],
        result=triangle if packed else (samples, channels, channels),
        ways=[*ways, Way(OURS, ours)],
        flops=(covariance + iterations, 2 * (covariance + iterations)),
        operand=rectified,
        compiles=not packed,
    )


def _native(x: Tensor) -> Tensor:
    return _newton_schulz(x, torch.bmm)


def _by_einsum(x: Tensor) -> Tensor:
    return _newton_schulz(x, partial(torch.einsum, "bij,bjk->bik"))


def _newton_schulz(x: Tensor, product: Function) -> Tensor:
    """As the authors write it: products with the identity, and those nobody needs, left out."""
    x = x.flatten(2)
    centred = x - x.mean(2, keepdim=True)
    covariance = product(centred, centred.mT) / x.size(2)
    trace = centred.square().sum((1, 2), keepdim=True) / x.size(2)
    identity = 1.5 * torch.eye(x.size(1), dtype=x.dtype, device=x.device)
    root = covariance / trace
    step = identity - 0.5 * root
    root, inverse = product(root, step), step
    for _ in range(ITERATIONS - 2):
        step = identity - 0.5 * product(inverse, root)
        root, inverse = product(root, step), product(step, inverse)
    step = identity - 0.5 * product(inverse, root)
    return product(root, step) * trace.sqrt()
