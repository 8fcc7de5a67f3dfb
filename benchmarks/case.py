"""What is measured: a case, the candidates that do its work, its floor and its targets."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import benchmarks

# Who does the work. Rivals carry their own name.
EAGER = "eager"
BEST = "native best"
COMPILED = "torch.compile"
OURS = "pyext"
OURS_COMPILED = "pyext, compiled"

FLOOR = "floor"
GEMM_RATE = "mm's rate"


@dataclass(frozen=True)
class Candidate:
    """One way to do the work of a case.

    Attributes:
        name: who does it.
        run: takes the inputs of the case and returns what all candidates must agree on; None when
            it cannot run here.
        missing: why it cannot run here.
        keeps_inputs: False when it writes into them, so that it needs inputs of its own.
        note: what a reader should know about it.
    """

    name: str
    run: Callable[..., Sequence[Tensor]] | None
    missing: str | None = None
    keeps_inputs: bool = True
    note: str = ""


@dataclass(frozen=True)
class Target:
    """What pyext has promised: to be `at_least` times as fast as `versus`.

    With `versus` the floor or the rate of matrix products, `at_least` is a share of what they
    allow. With `within`, pyext may take that many seconds more than `versus` instead.
    """

    versus: str
    at_least: float = 1.0
    within: float | None = None


@dataclass(frozen=True)
class Group:
    """Cases of which a promise speaks together: targets for the geometric mean of all."""

    name: str
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class Case:
    """One line of the benchmark: an op on inputs of one size.

    Attributes:
        op: the stem of the op.
        name: distinguishes the cases of an op; results are compared by it.
        inputs: makes the tensors for a device; those that require gradients are leaves.
        candidates: the first is torch's own op, with which the others must agree.
        moved_bytes: the fewest bytes that go to and from memory.
        flops: the fewest operations of matrix products, for ops that have them.
        overlap: whether the floor lets the operations hide behind the bytes, so that it is the
            larger of their times; else it is the sum.
        gemm_dtype: of the matrix products whose rate bounds the operations.
        targets: what pyext has promised.
        group: the cases with which it is judged as one.
        time_share: of the usual time for the rounds, where an op has many cases.
        quick: whether it belongs to `--quick`.
        headline: whether README shows it.
        tolerance: by which results may differ, relative to the largest.
    """

    op: str
    name: str
    inputs: Callable[[str], Sequence[Tensor]]
    candidates: Sequence[Candidate]
    moved_bytes: float
    flops: float = 0.0
    overlap: bool = True
    gemm_dtype: torch.dtype = torch.float32
    targets: Sequence[Target] = ()
    group: Group | None = None
    time_share: float = 1.0
    quick: bool = False
    headline: bool = False
    tolerance: float = 1e-4

    def without_targets(self) -> Case:
        """For a device on which nothing has been promised."""
        group = self.group and replace(self.group, targets=())
        return replace(self, targets=(), group=group)


def ops() -> list[str]:
    """The ops that have a file here."""
    names = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
    return sorted(name.removeprefix("bench_") for name in names if name.startswith("bench_"))


def cases(op: str, device: str) -> list[Case]:
    """The cases of one op on a device."""
    found: list[Case] = importlib.import_module(f"benchmarks.bench_{op}").cases(device)
    names = [case.name for case in found]
    assert len(set(names)) == len(names), f"{op}: two cases of one name"
    return found
