"""What a run leaves behind: numbers, in JSON, by machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.case import EAGER, FLOOR, OURS, Target
from benchmarks.machine import Machine

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measurement:
    """One candidate of one case. Seconds are per call; all are None when it did not run.

    Attributes:
        name: who did the work.
        missing: why it did not run.
        seconds: the median.
        quartiles: first and third quartile.
        speedup: how many times as fast pyext is, and the quartiles of that.
        first_call: seconds of the first call.
        peak_bytes: memory beyond the inputs.
        samples: how many rounds of how many calls.
        note: see `Candidate.note`.
    """

    name: str
    missing: str | None = None
    seconds: float | None = None
    quartiles: Sequence[float] | None = None
    speedup: Sequence[float] | None = None
    first_call: float | None = None
    peak_bytes: int | None = None
    samples: Sequence[int] | None = None
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """A target and whether it is met; `measured` is None when there was nothing to measure."""

    versus: str
    at_least: float
    measured: float | None

    @property
    def met(self) -> bool:
        """Whether it is met; a target that could not be measured is not."""
        return self.measured is not None and self.measured >= self.at_least

    def __str__(self) -> str:
        got = "nothing" if self.measured is None else f"{self.measured:.3g}"
        return f"wanted {self.at_least:g} x {self.versus}, got {got}"


@dataclass(frozen=True)
class CaseResult:
    """One case: its floor in seconds, the bandwidth beside it, all candidates, the verdicts."""

    op: str
    name: str
    headline: bool
    moved_bytes: float
    flops: float
    floor: float
    bandwidth: float
    measurements: Sequence[Measurement]
    verdicts: Sequence[Verdict] = ()

    def __getitem__(self, name: str) -> Measurement | None:
        """The measurement of a candidate, if it ran."""
        ran = (one for one in self.measurements if one.name == name and one.seconds is not None)
        return next(ran, None)

    def share_of_floor(self, name: str) -> float | None:
        """Floor over time: 1 is as fast as the machine allows."""
        measured = self[name]
        return self.floor / measured.seconds if measured and measured.seconds else None

    def speedup_over(self, name: str) -> float | None:
        """How many times as fast as `name` pyext is."""
        measured = self[name]
        return measured.speedup[0] if measured and measured.speedup else None

    def judge(self, targets: Sequence[Target]) -> list[Verdict]:
        """The verdicts on the targets of the case."""
        return [
            Verdict(
                one.versus,
                one.at_least,
                self.share_of_floor(OURS) if one.versus == FLOOR else self.speedup_over(one.versus),
            )
            for one in targets
        ]


@dataclass(frozen=True)
class Run:
    """Everything that one call of `python -m benchmarks` measured; `load` is what others ran."""

    machine: Machine
    device: str
    date: str
    pyext: str
    quick: bool
    threads: int
    load: float
    bandwidth: float
    gemm_rate: float
    cases: list[CaseResult] = field(default_factory=list)

    @property
    def misses(self) -> list[tuple[CaseResult, Verdict]]:
        """Targets that are not met."""
        return [(case, one) for case in self.cases for one in case.verdicts if not one.met]

    @property
    def failures(self) -> list[CaseResult]:
        """Cases in which pyext or torch's own op did not run."""
        return [case for case in self.cases if not (case[OURS] and case[EAGER])]


def save(run: Run, file: Path) -> None:
    """Writes a run as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(_rounded(asdict(run)), indent=1) + "\n")


def load(file: Path) -> Run:
    """Reads what `save` wrote."""
    data: dict[str, Any] = json.loads(file.read_text())
    data["machine"] = Machine(**data["machine"])
    data["cases"] = [
        CaseResult(
            **case
            | {
                "measurements": [Measurement(**one) for one in case["measurements"]],
                "verdicts": [Verdict(**one) for one in case["verdicts"]],
            }
        )
        for case in data["cases"]
    ]
    return Run(**data)


def committed() -> list[Path]:
    """The result files of all machines."""
    return sorted(FOLDER.glob("*.json"))


def _rounded(value: Any) -> Any:
    """Five digits are more than was measured."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
