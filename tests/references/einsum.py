"""einsum by its definition: all operands multiplied over all labels, and the product summed.

Everything is materialised, in float64, complex128 or int64, whose low bits are those of any other
integer type; or in bool, where a product is `and` and a sum is `or`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Labels = list[Any]


def split(term: str) -> Labels:
    """The labels of a term, with `...` for an ellipsis."""
    found = re.findall(r"\.\.\.|\S", term)
    return [... if label == "..." else label for label in found]


def read(args: Sequence[Any]) -> tuple[list[Tensor], list[Labels], Labels | None]:
    """Operands, the labels of each, and those of the result if they are given."""
    if isinstance(args[0], str):
        inputs, arrow, output = args[0].partition("->")
        operands = args[1] if isinstance(args[1], (list, tuple)) else args[1:]
        return list(operands), list(map(split, inputs.split(","))), split(output) if arrow else None
    explicit = len(args) % 2 == 1
    pairs = args[:-1] if explicit else args
    return list(pairs[::2]), list(map(list, pairs[1::2])), list(args[-1]) if explicit else None


def spelled_out(term: Labels, rank: int) -> Labels:
    """The labels with the axes of the ellipsis numbered from its end, where they are aligned."""
    if ... not in term:
        return term
    at, covered = term.index(...), rank - (len(term) - 1)
    return [*term[:at], *((..., i - covered) for i in range(covered)), *term[at + 1 :]]


def implicit(terms: list[Labels], widest: Labels) -> Labels:
    """The result without `->`: the ellipsis, then the labels that appear once, in order."""
    labels = [label for term in terms for label in term if not isinstance(label, tuple)]
    return [*widest, *sorted(label for label in labels if labels.count(label) == 1)]


def aligned(x: Tensor, term: Labels, order: Labels) -> Tensor:
    """x with one axis for each label of `order`, of size 1 where x does not have it."""
    term = list(term)
    for label in set(term):
        while term.count(label) > 1:
            first = term.index(label)
            second = term.index(label, first + 1)
            x = x.diagonal(0, first, second)
            term = [*term[:first], *term[first + 1 : second], *term[second + 1 :], label]
    x = x.permute([term.index(label) for label in order if label in term])
    for axis, label in enumerate(order):
        if label not in term:
            x = x.unsqueeze(axis)
    return x


def spread(x: Tensor, output: Labels) -> Tensor:
    """x, with an axis for each label, laid on the diagonals of those that are repeated."""
    for axis, label in enumerate(output):
        first = output.index(label)
        if first == axis:
            continue
        n = x.shape[first]
        places = torch.arange(n, device=x.device)
        x = x.unsqueeze(axis)
        here = places.view([n if i == axis else 1 for i in range(x.dim())])
        there = places.view([n if i == first else 1 for i in range(x.dim())])
        x = torch.where(here == there, x, torch.zeros((), dtype=x.dtype, device=x.device))
    return x


def widest_dtype(operands: list[Tensor]) -> torch.dtype:
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in operands))
    if dtype.is_complex:
        return torch.complex128
    if dtype.is_floating_point:
        return torch.float64
    return torch.bool if dtype == torch.bool and len(operands) > 1 else torch.int64


def einsum(
    *args: Any,
    alpha: complex = 1,
    beta: complex = 0,
    out: Tensor | None = None,
    accumulate_dtype: torch.dtype | None = None,
    layout: str = "contiguous",
    path: Any = None,
) -> Tensor:
    """alpha times the sum, plus beta times `out`, which is left alone.

    How the sum is formed and where it lies is of no concern here.
    """
    operands, terms, output = read(args)
    dtype = widest_dtype(operands)
    terms = [spelled_out(term, x.dim()) for term, x in zip(terms, operands, strict=True)]
    labels = list(dict.fromkeys(label for term in terms for label in term))
    widest = sorted(label for label in labels if isinstance(label, tuple))
    if output is None:
        output = implicit(terms, widest)
    elif ... in output:
        at = output.index(...)
        output = [*output[:at], *widest, *output[at + 1 :]]

    kept = list(dict.fromkeys(output))
    order = [*kept, *(label for label in labels if label not in kept)]
    factors = [aligned(x.to(dtype), term, order) for x, term in zip(operands, terms, strict=True)]
    result = functools.reduce(torch.mul, factors)
    if len(order) > len(kept):
        summed = list(range(len(kept), len(order)))
        result = result.any(summed) if dtype == torch.bool else result.sum(summed)
    result = spread(result, output)
    if alpha != 1:
        result = alpha * result
    return result if beta == 0 else result + beta * out.to(dtype)
