"""Cases of whole programs, unchanged: torch's, and the same under `pyext.accelerate()`.

Most of what such a program does is neither's: convolutions, and Python. The promise is that none
becomes slower. Those of several processes are not timed, for they wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

import pyext
from benchmarks.case import EAGER, OURS, Candidate, Case, Target
from examples.programs import Result
from examples.programs.catalogue import PROGRAMS

# Nothing in it is pyext's, so that what it measures is the noise.
OF_NO_OP = "sine, by hand"
QUICK = ("two rings", "digits, CNN")
HEADLINES = ("two rings", "digits, CNN", "bilinear CNN, full head", "attention in einsum")
# By which losses may differ, of the largest one: the arithmetic has 16 bits, or magnifies rounding.
TOLERANCES = {
    "digits, model.half()": 2e-2,
    "digits, model.bfloat16()": 2e-2,
    "digits, autocast to bfloat16": 1e-2,
    "digits, autocast to float16": 1e-3,
    "bilinear CNN, pooled": 1e-2,
    "bilinear CNN, full head": 1e-3,
}
TIME = 0.5  # of the usual for a case, since there are many


def cases(device: str) -> list[Case]:
    """The programs run on the CPU."""
    if device != "cpu":
        return []
    return [_case(name, program) for name, program in PROGRAMS.items()]


def _case(name: str, program: Callable[[], Result]) -> Case:
    return Case(
        op="programs",
        name=name,
        inputs=lambda _: [],
        candidates=[
            Candidate(EAGER, lambda: _losses(program)),
            Candidate(OURS, pyext.accelerate(lambda: _losses(program))),
        ],
        moved_bytes=0,
        targets=[] if name == OF_NO_OP else [Target(EAGER, 1.0)],
        time_share=TIME,
        quick=name in QUICK,
        headline=name in HEADLINES,
        tolerance=TOLERANCES.get(name, 1e-4),
    )


def _losses(program: Callable[[], Result]) -> Sequence[Tensor]:
    return [program().losses]
