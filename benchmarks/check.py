"""Compares a run with an earlier one by ratios: seconds depend on the machine's other users."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.case import BEST, COMPILED, EAGER
from benchmarks.results import Measurement, Run

ALLOWANCE = 0.1  # two runs of the same code differ by this much


@dataclass(frozen=True)
class Finding:
    """One speed-up, then and now. `lowest` is the least that is put down to noise."""

    op: str
    case: str
    versus: str
    then: float
    now: float
    lowest: float

    @property
    def regression(self) -> bool:
        """Whether pyext has become slower."""
        return self.now < self.lowest


def compare(then: Run, now: Run) -> list[Finding]:
    """The speed-ups that both runs have.

    The allowance for noise grows with the spread within both runs: half the distance between the
    quartiles of each, as a share of the median.
    """
    before = {(case.op, case.name): case for case in then.cases}
    findings = []
    for case in now.cases:
        earlier = before.get((case.op, case.name))
        if earlier is None:
            continue
        for versus in (EAGER, BEST, COMPILED):
            old, new = earlier[versus], case[versus]
            if not (old and new and old.speedup and new.speedup):
                continue
            allowance = ALLOWANCE + _spread(old) + _spread(new)
            lowest = old.speedup[0] * (1 - min(allowance, 0.5))
            findings.append(
                Finding(case.op, case.name, versus, old.speedup[0], new.speedup[0], lowest)
            )
    return findings


def _spread(measurement: Measurement) -> float:
    assert measurement.speedup
    median, lower, upper = measurement.speedup
    return (upper - lower) / 2 / median
