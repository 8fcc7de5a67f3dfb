"""Writes tables and pictures from the committed results: nobody types a number.

README.md has a section between two marks, with one case of each op from the newest results of each
device; docs/benchmarks.md has every case and every missed target of every result file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import distances, picture, results
from benchmarks.case import BEST, COMPILED, EAGER, OURS
from benchmarks.results import CaseResult, Run
from benchmarks.terminal import TIMES, duration, size

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- benchmarks: written by `python -m benchmarks report` -->"
END = "<!-- benchmarks: end -->"


def write(root: Path = ROOT) -> list[Path]:
    """Rewrites README.md, docs/benchmarks.md and the pictures; returns what was written."""
    runs = [results.load(file) for file in results.committed()]
    newest: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.date):
        newest[run.device] = run
    docs = root / "docs"
    docs.mkdir(exist_ok=True)
    written = [docs / "benchmarks.md"]
    written[0].write_text(_all_results(runs, list(newest.values())))
    for run in newest.values():
        written.append(docs / f"benchmarks-{run.device}.png")
        picture.draw(run, representatives(run), written[-1])
        for op in distances.ops(run):
            written.append(docs / distances.file_name(run, op))
            distances.draw(run, op, written[-1])
    written.append(root / "README.md")
    sections = [_readme_section(newest[device]) for device in sorted(newest)]
    text = replace_section(written[-1].read_text(), "\n\n".join(sections))
    written[-1].write_text(text)
    return written


def replace_section(text: str, section: str) -> str:
    """`text` with another section between the marks.

    Raises:
        ValueError: the marks are not there.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the marks {BEGIN} and {END} are missing")
    return pattern.sub(lambda _: f"{BEGIN}\n{section}\n{END}", text, count=1)


def representatives(run: Run) -> list[CaseResult]:
    """Of each op, the headline case in the middle by speed-up over eager; the lower of two."""
    found = []
    for op in distances.ops(run):
        shown = [case for case in run.cases if case.op == op and case.headline]
        shown.sort(key=lambda case: case.speedup_over(EAGER) or 0.0)
        found += shown[(len(shown) - 1) // 2 :][:1]
    return found


def _readme_section(run: Run) -> str:
    header = ["", EAGER, BEST, COMPILED, OURS, "over eager", "all cases", "memory"]
    rows = (_readme_row(case, run) for case in representatives(run))
    return "\n\n".join(
        [
            f"![Speed-up by case, and share of the floor](docs/benchmarks-{run.device}.png)",
            f"{_heading(run)} Native best is what a user of torch can do without us, such as "
            "`fused=True` for an optimizer. Shown is of each op the case in the middle by speed-up "
            'over eager; "all cases" are the least and the greatest of all. Memory is torch\'s '
            "and pyext's peak beyond the input.",
            _table(header, rows),
            f"{_promises(run)} [Every case and every missed target](docs/benchmarks.md).",
        ]
    )


def _readme_row(case: CaseResult, run: Run) -> list[str]:
    torch, ours = case[EAGER], case[OURS]
    known = [one.speedup_over(EAGER) for one in run.cases if one.op == case.op]
    all_cases = [speedup for speedup in known if speedup]
    return [
        f"`{case.op}` {case.name}",
        *(_seconds(case, name) for name in (EAGER, BEST, COMPILED, OURS)),
        f"**{_times(case.speedup_over(EAGER))}**",
        f"{_times(min(all_cases))} to {_times(max(all_cases))}" if all_cases else "-",
        f"{size(torch.peak_bytes or 0)} / {size(ours.peak_bytes or 0)}" if torch and ours else "",
    ]


def _all_results(runs: Sequence[Run], pictured: Sequence[Run]) -> str:
    parts = [
        "# Benchmarks",
        "Written by `python -m benchmarks report` from `benchmarks/results/`. Every candidate of a "
        "case ran in turns with the others, in one process; times are medians, ± is half the "
        "distance between the quartiles; what takes seconds is timed by one call. The floor is the "
        "larger of bytes over the streaming bandwidth and operations over the rate of a matrix "
        "product (float32, or a smaller float that the operands have), both measured in the same "
        "run, or their sum for the contractions of TCCG; it says nothing about a case that lasts "
        "no longer than a call. Memory is the peak beyond the inputs.",
    ]
    for run in runs:
        parts += [f"## {run.machine.title}", _heading(run), _promises(run)]
        if run.groups:
            parts.append("\n".join(f"- {group}" for group in run.groups))
        if run.misses:
            missed = ([one.op, one.name, v.wanted, v.got] for one, v in run.misses)
            parts.append(_table(["missed", "case", "wanted", "got"], missed, left=3))
        for op in distances.ops(run):
            header = ["", "by", "time", "±", "pyext is faster by", "of the floor", "memory"]
            rows = [row for case in run.cases if case.op == op for row in _full_rows(case)]
            parts.append(f"### {op}")
            if run in pictured:
                parts.append(
                    f"![How far each case is from the floor]({distances.file_name(run, op)})"
                )
            parts.append(_table(header, rows, left=2))
    return "\n\n".join(parts) + "\n"


def _full_rows(case: CaseResult) -> Iterable[list[str]]:
    for index, one in enumerate(case.measurements):
        name = case.name if index == 0 else ""
        by = f"{one.name} ({one.note})" if one.note else one.name
        if one.seconds is None:
            yield [name, by, one.missing or "", "", "", "", ""]
            continue
        share = case.share_of_floor(one.name)
        yield [
            name,
            by,
            duration(one.seconds),
            one.spread,
            "" if one.name == OURS or not one.speedup else _times(one.speedup[0]),
            f"{share:.0%}" if share and case.has_floor else "",
            size(one.peak_bytes or 0),
        ]


def _heading(run: Run) -> str:
    machine = run.machine
    return (
        f"Measured {run.date} on {machine.title}, {run.threads} threads, Python {machine.python}; "
        f"streaming {run.bandwidth / 1e9:,.0f} GB/s, float32 `mm` {run.gemm_rate / 1e9:,.0f} "
        f"GFLOP/s in the same run. {run.busy}"
    ).rstrip()


def _promises(run: Run) -> str:
    """How many targets are met, and how many are not."""
    judged, missed = len(run.judged), len(run.misses)
    if not judged:
        return "There are no targets for this device."
    return f"Targets met on this machine: {judged - missed} of {judged}; missed: {missed}."


def _seconds(case: CaseResult, name: str) -> str:
    one = case[name]
    return duration(one.seconds) if one and one.seconds else "-"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}{TIMES}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = line(["---"] * left + ["---:"] * (len(header) - left))
    return "\n".join([line(header), rule, *map(line, rows)])
