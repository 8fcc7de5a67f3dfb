"""What a run leaves behind: numbers, in JSON, by machine."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.case import EAGER, FLOOR, GEMM_RATE, OURS, Case, Target
from benchmarks.floors import STREAMS
from benchmarks.machine import Machine

FOLDER = Path(__file__).parent / "results"
BUSY = 0.7  # a load average above which others disturb a measurement
LONG = 20e-6  # seconds, beside which the overhead of a call is small


@dataclass(frozen=True)
class Measurement:
    """One candidate of one case. Seconds are per call; all are None when it did not run.

    Attributes:
        name: who did the work.
        missing: why it did not run.
        seconds: the median.
        quartiles: first and third quartile; None when it was so slow that it was called once.
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

    @property
    def spread(self) -> str:
        """Half the distance between the quartiles, for people."""
        if not (self.seconds and self.quartiles):
            return "one call"
        low, high = self.quartiles
        return f"{(high - low) / 2 / self.seconds:.0%}"


@dataclass(frozen=True)
class Verdict:
    """A target and whether it is met.

    `measured` is a ratio or, where the target has `within`, a difference in seconds; None when
    there was nothing to measure.
    """

    versus: str
    at_least: float
    measured: float | None
    within: float | None = None

    @property
    def met(self) -> bool:
        """Whether it is met; a target that could not be measured is not."""
        if self.measured is None:
            return False
        if self.within is not None:
            return self.measured <= self.within
        return self.measured >= self.at_least

    @property
    def wanted(self) -> str:
        """The target, for people."""
        if self.within is not None:
            return f"at most {self.within * 1e6:g} µs more than {self.versus}"
        return f"{self.at_least:g} x {self.versus}"

    @property
    def got(self) -> str:
        """What was measured, for people."""
        if self.measured is None:
            return "nothing"
        if self.within is not None:
            return f"{self.measured * 1e6:.3g} µs"
        return f"{self.measured:.3g}"

    def __str__(self) -> str:
        return f"wanted {self.wanted}, got {self.got}"


@dataclass(frozen=True)
class CaseResult:
    """One case: its floor in seconds, the rates beside it, all candidates, the verdicts."""

    op: str
    name: str
    headline: bool
    moved_bytes: float
    flops: float
    floor: float
    bandwidth: float
    measurements: Sequence[Measurement]
    verdicts: Sequence[Verdict] = ()
    gemm_rate: float = 0.0
    group: str = ""

    @property
    def has_floor(self) -> bool:
        """Whether the floor says anything: it streams, multiplies for long, or is judged so."""
        judged = any(verdict.versus == FLOOR for verdict in self.verdicts)
        return judged or self.moved_bytes >= STREAMS or (self.flops > 0 and self.floor >= LONG)

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

    def ratio_to(self, versus: str) -> float | None:
        """How near pyext is to what the machine allows, or how many times as fast as others."""
        ours = self[OURS]
        if versus == FLOOR:
            return self.share_of_floor(OURS)
        if versus == GEMM_RATE:
            return self.flops / self.gemm_rate / ours.seconds if ours and ours.seconds else None
        return self.speedup_over(versus)

    def seconds_beyond(self, versus: str) -> float | None:
        """How many seconds more than another pyext takes."""
        other, ours = self[versus], self[OURS]
        seconds = [one.seconds for one in (other, ours) if one and one.seconds]
        return seconds[1] - seconds[0] if len(seconds) == 2 else None

    def judge(self, targets: Sequence[Target]) -> list[Verdict]:
        """The verdicts on the targets of the case."""
        return [
            Verdict(
                one.versus,
                one.at_least,
                self.ratio_to(one.versus)
                if one.within is None
                else self.seconds_beyond(one.versus),
                one.within,
            )
            for one in targets
        ]


@dataclass(frozen=True)
class GroupResult:
    """The cases of a group as one: the verdicts on their geometric means."""

    op: str
    name: str
    count: int
    verdicts: Sequence[Verdict] = ()

    def __str__(self) -> str:
        means = (f"{one.measured:.3g} x {one.versus}" for one in self.verdicts if one.measured)
        return f"{self.op} {self.name}, geometric mean of {self.count}: {', '.join(means) or '-'}"


def judge_groups(cases: Sequence[Case], found: Sequence[CaseResult]) -> list[GroupResult]:
    """The verdicts on the groups of `cases`, all of which must have been measured.

    Args:
        cases: what was measured.
        found: the result of each case.
    """
    members: dict[tuple[str, str], list[CaseResult]] = {}
    targets: dict[tuple[str, str], Sequence[Target]] = {}
    for case, result in zip(cases, found, strict=True):
        if case.group and case.group.targets:
            members.setdefault((case.op, case.group.name), []).append(result)
            targets[case.op, case.group.name] = case.group.targets
    return [
        GroupResult(
            *key,
            len(results),
            [
                Verdict(
                    one.versus,
                    one.at_least,
                    geometric_mean([result.ratio_to(one.versus) for result in results]),
                )
                for one in targets[key]
            ],
        )
        for key, results in members.items()
    ]


def geometric_mean(ratios: Sequence[float | None]) -> float | None:
    """None when one of them is missing."""
    known = [ratio for ratio in ratios if ratio]
    return statistics.geometric_mean(known) if known and len(known) == len(ratios) else None


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
    groups: list[GroupResult] = field(default_factory=list)

    @property
    def busy(self) -> str:
        """A remark for people, if others used the machine when the run began."""
        return f"The machine was busy (load {self.load:.1f})." if self.load > BUSY else ""

    @property
    def judged(self) -> list[tuple[CaseResult | GroupResult, Verdict]]:
        """All verdicts, and on what."""
        ran: list[CaseResult | GroupResult] = [*self.cases, *self.groups]
        return [(one, verdict) for one in ran for verdict in one.verdicts]

    @property
    def misses(self) -> list[tuple[CaseResult | GroupResult, Verdict]]:
        """Targets that are not met."""
        return [(one, verdict) for one, verdict in self.judged if not verdict.met]

    @property
    def failures(self) -> list[CaseResult]:
        """Cases in which pyext or torch's own op did not run."""
        return [case for case in self.cases if not (case[OURS] and case[EAGER])]


def to_json(run: Run) -> str:
    """A run as JSON."""
    return json.dumps(_rounded(asdict(run)), indent=1)


def save(run: Run, file: Path) -> None:
    """Writes a run as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(to_json(run) + "\n")


def load(file: Path) -> Run:
    """Reads what `save` wrote."""
    data: dict[str, Any] = json.loads(file.read_text())
    data["machine"] = Machine(**data["machine"])
    for one in (*data["cases"], *data.get("groups", ())):
        one["verdicts"] = [Verdict(**verdict) for verdict in one["verdicts"]]
    for case in data["cases"]:
        case["measurements"] = [Measurement(**one) for one in case["measurements"]]
    data["cases"] = [CaseResult(**case) for case in data["cases"]]
    data["groups"] = [GroupResult(**group) for group in data.get("groups", ())]
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
