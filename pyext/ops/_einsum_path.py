"""The order in which einsum contracts four or more operands."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import opt_einsum
import torch
from torch import Tensor

from pyext import _C

Path = Sequence[Sequence[int] | str]


def flat_path(path: Path | None, equation: str, operands: Sequence[Tensor]) -> list[int] | None:
    """The path as the op takes it; None where there is nothing to choose."""
    if path is not None:
        return _pairs(path, equation, len(operands))
    # Of three operands the op compares all orders. A compiled or traced program may meet other
    # sizes: there it chooses when it runs.
    if len(operands) < 4 or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    return _cheapest_path(equation, tuple(tuple(x.shape) for x in operands))


def _pairs(path: Path, equation: str, count: int) -> list[int]:
    """A path of groups of any size, as searches return them, as one of pairs."""
    theirs, ours = list(range(count)), list(range(count))
    pairs, following = [], count
    for group in path:
        if isinstance(group, str):  # numpy.einsum_path begins with its name
            continue
        if (
            not group
            or len(set(group)) < len(group)
            or not 0 <= min(group) <= max(group) < len(theirs)
        ):
            raise ValueError(
                f"einsum(): the path {path} does not fit {count} operands\n  {equation}"
            )
        first, *others = [theirs[position] for position in group]
        theirs = [node for node in theirs if node not in (first, *others)]
        for other in others:
            pairs += [ours.index(first), ours.index(other)]
            ours = [node for node in ours if node not in (first, other)]
            first, following = following, following + 1
            ours.append(first)
        theirs.append(first)
    return pairs


@functools.lru_cache(maxsize=4096)
def _cheapest_path(equation: str, shapes: tuple[tuple[int, ...], ...]) -> list[int]:
    inputs, output = _C.einsum_letters(equation, [len(shape) for shape in shapes])
    sizes: dict[str, int] = {}
    for labels, shape in zip(inputs, shapes, strict=True):
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = size if sizes.get(label, 1) == 1 else sizes[label]
    search: Any = opt_einsum.paths.greedy
    if len(inputs) <= 12:  # exact; an element moved costs as much as 16 multiplied
        search = opt_einsum.paths.DynamicProgramming(minimize="combo-16")
    path = search([frozenset(x) for x in inputs], frozenset(output), sizes, None)
    return _pairs(path, equation, len(inputs))
