"""The contractions that the files in contractions/ list, and what each costs at least."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "contractions"
ELLIPSIS = "..."
BROADCAST = "XYZ"  # labels of the dimensions that an ellipsis stands for

Labels = frozenset[str]


@dataclass(frozen=True)
class Contraction:
    """One einsum expression and the sizes of its operands.

    Attributes:
        equation: as `torch.einsum` takes it.
        sizes: of every label, for people: "a,b=72 c=24".
        shapes: of every operand.
        dtype: of every operand.
        same: whether the two operands are one tensor.
    """

    equation: str
    sizes: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32
    same: bool = False

    @property
    def name(self) -> str:
        """Distinguishes it from all others."""
        kind = "" if self.dtype == torch.float32 else f", {str(self.dtype).removeprefix('torch.')}"
        return f"{self.equation}, {self.sizes}{kind}"

    def operands(self, device: str) -> list[Tensor]:
        """Random tensors, one if both operands are the same."""
        shapes = self.shapes[:1] if self.same else self.shapes
        if self.dtype.is_floating_point:
            return [torch.randn(shape).to(device, self.dtype) for shape in shapes]
        return [torch.randint(-99, 100, shape, dtype=self.dtype).to(device) for shape in shapes]

    def called(self, einsum: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A function of what `operands` makes."""
        if self.same:
            return lambda x, **options: einsum(self.equation, x, x, **options)
        return partial(einsum, self.equation)

    @property
    def result_shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        _, result = self._labels()
        return tuple(self._label_sizes()[label] for label in result)

    @property
    def is_view(self) -> bool:
        """Whether the result is the operand in another order, which costs nothing."""
        terms, result = self._labels()
        return len(terms) == 1 and set(terms[0]) == set(result)

    @property
    def operand_bytes(self) -> int:
        """Bytes of the operands, each element once: of a diagonal, those on it."""
        if self.is_view:
            return 0
        terms, _ = self._labels()
        used = zip(terms[:1] if self.same else terms, self.shapes, strict=False)
        own = (dict(zip(term, shape, strict=True)).values() for term, shape in used)
        return self.dtype.itemsize * sum(math.prod(sizes) for sizes in own)

    @property
    def result_bytes(self) -> int:
        """Bytes of the result."""
        return 0 if self.is_view else self.dtype.itemsize * math.prod(self.result_shape)

    @property
    def flops(self) -> float:
        """Multiplications and additions, two operands at a time in the cheapest order.

        A product of a tensor with itself is symmetric here, and half of it is enough.
        """
        terms, result = self._labels()
        fewest = _fewest([frozenset(term) for term in terms], frozenset(result), self._elements)
        return fewest / 2 if self.same else fewest

    @property
    def intensity(self) -> float:
        """Operations for each byte of operands and result."""
        return self.flops / max(1, self.operand_bytes + self.result_bytes)

    def _labels(self) -> tuple[list[str], str]:
        """The labels of the operands and of the result, with letters for an ellipsis."""
        left, result = self.equation.split("->")
        terms, most = [], ""
        for term, shape in zip(left.split(","), self.shapes, strict=True):
            extra = len(shape) - len(term.replace(ELLIPSIS, ""))
            letters = BROADCAST[len(BROADCAST) - extra :]
            most = max(most, letters, key=len)
            terms.append(term.replace(ELLIPSIS, letters))
        return terms, result.replace(ELLIPSIS, most)

    def _label_sizes(self) -> dict[str, int]:
        terms, _ = self._labels()
        sizes: dict[str, int] = {}
        for term, shape in zip(terms, self.shapes, strict=True):
            sizes.update(zip(term, shape, strict=True))
        return sizes

    def _elements(self, labels: Labels) -> float:
        sizes = self._label_sizes()
        return float(math.prod(sizes[label] for label in labels))


def _fewest(terms: list[Labels], kept: Labels, elements: Callable[[Labels], float]) -> float:
    """The operations of the cheapest order in which to contract `terms` to `kept`."""
    orders = []
    for i, j in itertools.combinations(range(len(terms)), 2):
        others = [term for index, term in enumerate(terms) if index not in (i, j)]
        both = terms[i] | terms[j]
        result = both & kept.union(*others)
        operations = elements(both) * (1 if result == both else 2)
        orders.append(operations + _fewest([*others, result], kept, elements))
    return min(orders, default=0.0)


def read(name: str) -> list[Contraction]:
    """The contractions of a file in contractions/."""
    lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    return [_parse(line) for line in lines if not line.startswith("#")]


def _parse(line: str) -> Contraction:
    equation, sizes, *mark = (part.strip() for part in line.split("|"))
    size_of = dict(item.split("=") for item in sizes.split())
    broadcast = iter(size_of.get(ELLIPSIS, "").split(";"))

    def shape(term: str) -> tuple[int, ...]:
        extra = next(broadcast).split(",") if ELLIPSIS in term else []
        own = (size_of[label] for label in term.replace(ELLIPSIS, ""))
        return tuple(int(size) for size in (*extra, *own))

    same = mark == ["same"]
    return Contraction(
        equation,
        _grouped(size_of),
        tuple(shape(term) for term in equation.split("->")[0].split(",")),
        torch.float32 if same or not mark else getattr(torch, mark[0]),
        same,
    )


def _grouped(size_of: dict[str, str]) -> str:
    """Labels of one size together: "a,b=72 c=24"."""
    labels: dict[str, list[str]] = {}
    for label, size in size_of.items():
        labels.setdefault(size, []).append(label)
    return " ".join(f"{','.join(group)}={size}" for size, group in labels.items())
