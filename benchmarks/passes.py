"""Forward alone, and forward + backward: the two ways in which an op on given tensors is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import COMPILED, Candidate, Case, Group

FORWARD, BACKWARD = Group("forward"), Group("forward + backward")

Function = Callable[..., Tensor]
Run = Callable[..., Sequence[Tensor]]


def forward(function: Function) -> Run:
    """Runs the function alone."""
    return lambda *inputs: (function(*inputs),)


def forward_backward(function: Function) -> Run:
    """Runs the function, then its derivative, for which the last input is the cotangent.

    Gives the result and the gradients of the inputs that require them.
    """

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        *operands, cotangent = inputs
        for operand in operands:
            operand.grad = None
        result = function(*operands)
        result.backward(cotangent)
        return (result, *(one.grad for one in operands if one.grad is not None))

    return run


def compiled(function: Function) -> Function:
    """The function by torch.compile; it compiles when it is first called."""
    return torch.compile(function, fullgraph=True, dynamic=False)


@dataclass(frozen=True)
class Way:
    """One way to compute a result from its operands.

    Attributes:
        name: whose it is, as in `Candidate`.
        function: takes the operands, and what `Work.constants` makes.
        note: what a reader should know about it.
        backward: whether autograd can go back through it.
    """

    name: str
    function: Function
    note: str = ""
    backward: bool = True


@dataclass(frozen=True)
class Work:
    """An op on operands of one size, from which both cases are made.

    Attributes:
        op: the stem of the op.
        name: its sizes, for people.
        shapes: of the operands.
        result: the shape of the result.
        ways: torch's own first; "torch.compile" is made from that one.
        flops: the fewest operations of the forward pass, and of the backward pass.
        operand: makes an operand of a shape.
        constants: makes what the ways take besides, for a device; it has no gradient.
        result_passes: how many times a result's worth of memory is read or written in both passes:
            the result and its gradient, and the result again where it is saved.
        dtype: of the operands.
        compiles: whether torch.compile takes part.
    """

    op: str
    name: str
    shapes: Sequence[tuple[int, ...]]
    result: tuple[int, ...]
    ways: Sequence[Way]
    flops: tuple[float, float]
    operand: Callable[[tuple[int, ...]], Tensor] = torch.randn
    constants: Callable[[str], list[Tensor]] = lambda _: []
    result_passes: int = 2
    dtype: torch.dtype = torch.float32
    compiles: bool = True

    def forward(self, **options: Any) -> Case:
        """The case of the forward pass; `options` are the other attributes of `Case`."""

        def inputs(device: str) -> list[Tensor]:
            return [*self._operands(device), *self.constants(device)]

        return Case(
            op=self.op,
            name=f"{self.name}, forward",
            inputs=inputs,
            candidates=self._candidates(self.ways, forward),
            moved_bytes=self._operand_bytes + self._result_bytes,
            flops=self.flops[0],
            gemm_dtype=self.dtype,
            group=FORWARD,
            **options,
        )

    def forward_backward(self, **options: Any) -> Case:
        """The case of both passes."""

        def inputs(device: str) -> list[Tensor]:
            leaves = [operand.requires_grad_() for operand in self._operands(device)]
            cotangent = torch.randn(self.result).to(device, self.dtype)
            return [*leaves, *self.constants(device), cotangent]

        return Case(
            op=self.op,
            name=f"{self.name}, forward + backward",
            inputs=inputs,
            candidates=self._candidates(
                [way for way in self.ways if way.backward], forward_backward
            ),
            # Operands are read by both passes, and their gradients written.
            moved_bytes=3 * self._operand_bytes + self.result_passes * self._result_bytes,
            flops=sum(self.flops),
            gemm_dtype=self.dtype,
            group=BACKWARD,
            **options,
        )

    def _operands(self, device: str) -> list[Tensor]:
        return [self.operand(shape).to(device, self.dtype) for shape in self.shapes]

    @property
    def _operand_bytes(self) -> int:
        return self.dtype.itemsize * sum(math.prod(shape) for shape in self.shapes)

    @property
    def _result_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.result)

    def _candidates(
        self, ways: Sequence[Way], passes: Callable[[Function], Run]
    ) -> list[Candidate]:
        found = [Candidate(way.name, passes(way.function), note=way.note) for way in ways]
        if self.compiles:
            by_compiler = Candidate(COMPILED, passes(compiled(ways[0].function)))
            found.insert(len(found) - 1, by_compiler)
        return found
