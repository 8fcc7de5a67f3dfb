"""Results as tables for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.case import BEST, COMPILED, EAGER, OURS
from benchmarks.check import Finding
from benchmarks.results import CaseResult, Measurement, Run

TIMES = "\N{MULTIPLICATION SIGN}"
RIVALS = (EAGER, BEST, COMPILED)  # of torch's own


def where(run: Run) -> str:
    """The machine, torch, the threads, and what bounds all candidates."""
    return (
        f"{run.machine.title}; {threads(run)}; streaming {run.bandwidth / 1e9:.0f} GB/s, "
        f"mm {run.gemm_rate / 1e9:.0f} GFLOP/s"
    )


def threads(run: Run) -> str:
    """How many, for people."""
    return f"{run.threads} thread{'' if run.threads == 1 else 's'}"


def show(run: Run, console: Console) -> None:
    """Every candidate of every case, then the targets that are missed."""
    console.print(where(run), soft_wrap=True)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("case", overflow="fold")  # reasons why something did not run are long
    for title in ("time", "±", "pyext is\nfaster by", "of the\nfloor", "memory"):
        table.add_column(title, justify="right", no_wrap=True)
    for case in run.cases:
        table.add_row(Text(f"{case.op} {case.name}", "bold"))
        for one in case.measurements:
            table.add_row(*_row(case, one))
    console.print(table)
    if run.quick:
        console.print("A quick look: few rounds, wide spread.", style="dim")
    for group in run.groups:
        console.print(str(group), soft_wrap=True)
    if judged := len(run.judged):
        console.print(f"targets met: {judged - len(run.misses)} of {judged}")
    for missed, verdict in run.misses:
        console.print(Text.assemble(("missed: ", "red"), f"{missed.op} {missed.name}: {verdict}"))


def _row(case: CaseResult, one: Measurement) -> list[Text | str]:
    name = Text(f"  {one.name}", "green" if one.name == OURS else "")
    if one.seconds is None:
        return [name.append(f": {one.missing}", "dim")]
    share = case.share_of_floor(one.name)
    return [
        name,
        duration(one.seconds),
        one.spread,
        "" if one.name == OURS or not one.speedup else f"{one.speedup[0]:.2f}x",
        f"{share:.0%}" if share else "",
        size(one.peak_bytes or 0),
    ]


def show_summary(run: Run, console: Console) -> None:
    """One line for each case: the time of torch and of pyext, and how many times as fast it is."""
    console.print(f"pyext {run.pyext} on {where(run)}", soft_wrap=True)
    present = [name for name in RIVALS if any(case[name] for case in run.cases)]
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("case", overflow="fold")
    for title in (EAGER, OURS, *(f"over {name}" for name in present)):
        table.add_column(title.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for op in dict.fromkeys(case.op for case in run.cases):
        table.add_row(Text(op, "bold"))
        for case in (case for case in run.cases if case.op == op):
            times = (_time(case[name]) for name in (EAGER, OURS))
            ratios = (_ratio(case.speedup_over(name)) for name in present)
            table.add_row(f"  {case.name}", *times, *ratios)
    console.print(table)
    for case in run.failures:
        for one in case.measurements:
            if one.name in (EAGER, OURS) and one.missing:
                failed = f"{case.op} {case.name}, {one.name}: {one.missing}"
                console.print(Text.assemble(("did not run: ", "red"), failed), soft_wrap=True)


def _time(one: Measurement | None) -> str:
    return duration(one.seconds) if one and one.seconds else "-"


def _ratio(value: float | None) -> Text:
    if value is None:
        return Text("-", "dim")
    style = "green" if value > 1.05 else "red" if value < 0.95 else ""
    return Text(f"{value:.1f}{TIMES}", style)


def show_comparison(findings: list[Finding], console: Console) -> None:
    """The speed-ups then and now."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("case", "pyext over", "then", "now", "least", ""):
        table.add_column(title)
    for one in findings:
        mark = Text("slower", "red") if one.regression else Text("ok", "green")
        numbers = (f"{value:.2f}x" for value in (one.then, one.now, one.lowest))
        table.add_row(f"{one.op} {one.case}", one.versus, *numbers, mark)
    console.print(table)


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    factor, unit = (1e3, "ms") if seconds < 1 else (1.0, "s")
    if seconds < 1e-3:
        factor, unit = 1e6, "µs"
    return f"{_three_digits(seconds * factor)} {unit}"


def size(count: float) -> str:
    """Three digits of bytes and a unit."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{_three_digits(count / factor)} {unit}"
    return f"{count:.0f} B"


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 3 - len(str(int(value))))}f}"
