"""Cases of the bilinear layer, and of the biaffine one over all pairs of positions."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import pyext
from benchmarks.case import BEST, COMPILED, EAGER, OURS, Case, Target
from benchmarks.passes import Way, Work

# Samples, features, features, results: in both passes, times as fast as eager and torch.compile.
TARGETS: dict[tuple[int, int, int, int], float | None] = {
    (128, 64, 64, 64): 5,
    (256, 128, 128, 128): 7,
    (1024, 256, 256, 8): 25,
    (64, 512, 512, 32): 25,
    (2048, 150, 150, 50): None,  # a parser's labels
    (512, 256, 256, 256): None,
}
QUICK = (128, 64, 64, 64)
HEADLINES = ((256, 128, 128, 128), (1024, 256, 256, 8), (2048, 150, 150, 50))
PAIRS = (16, 40, 40, 100, 100, 50)  # sentences, words, words, features, features, labels

TIME = 0.25  # of the usual for a case: torch takes long anyway


def cases(device: str) -> list[Case]:
    """The sizes in the forward pass, then in both."""
    found = [_layer(*size).forward(time_share=TIME) for size in TARGETS]
    for size, ratio in TARGETS.items():
        found.append(
            _layer(*size).forward_backward(
                targets=[Target(EAGER, ratio), Target(COMPILED, ratio)] if ratio else [],
                time_share=TIME,
                quick=size == QUICK,
                headline=size in HEADLINES,
            )
        )
    found.append(_pairs(*PAIRS).forward_backward(time_share=TIME))
    return found if device == "cpu" else [case.without_targets() for case in found]


def _layer(samples: int, in1: int, in2: int, out: int) -> Work:
    multiplies = samples * in1 * in2 * out
    return Work(
        op="bilinear",
        name=f"{samples} x {in1} x {in2} -> {out}",
        shapes=[(samples, in1), (samples, in2), (out, in1, in2), (out,)],
        result=(samples, out),
        ways=[
            Way(EAGER, F.bilinear),
            Way(BEST, partial(_by_einsum, "bi,oij,bj->bo"), note="torch.einsum"),
            Way(OURS, pyext.bilinear),
        ],
        # Backward has a product for the weight, and one of which the gradients of both inputs are
        # sums.
        flops=(2 * multiplies, 4 * multiplies),
    )


def _pairs(samples: int, first: int, second: int, in1: int, in2: int, out: int) -> Work:
    multiplies = samples * first * in2 * out * (in1 + second)
    return Work(
        op="bilinear",
        name=f"biaffine, {samples} x {first} x {second}, {in1} x {in2} -> {out}",
        shapes=[(samples, first, in1), (samples, second, in2), (out, in1, in2), (out,)],
        result=(samples, first, second, out),
        ways=[
            Way(EAGER, partial(_by_einsum, "bxi,oij,byj->bxyo"), note="torch.einsum"),
            Way(OURS, pyext.biaffine),
        ],
        flops=(2 * multiplies, 4 * multiplies),
        compiles=False,
    )


def _by_einsum(equation: str, x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum(equation, x1, weight, x2) + bias
