"""What is measured: a case, the candidates that do its work, its floor and its targets."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

import benchmarks

# Who does the work. Rivals carry their own name.
EAGER = "eager"
BEST = "native best"
COMPILED = "torch.compile"
OURS = "pyext"
OURS_COMPILED = "pyext, compiled"

FLOOR = "floor"


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

    With `versus` the floor, `at_least` is a share of the speed that the floor allows.
    """

    versus: str
    at_least: float


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
        targets: what pyext has promised.
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
    targets: Sequence[Target] = ()
    quick: bool = False
    headline: bool = False
    tolerance: float = 1e-4


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
