"""The picture of an op: how far torch and pyext are from the floor in each of its cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.case import BEST, COMPILED, EAGER, FLOOR, OURS
from benchmarks.picture import COLORS, STYLE
from benchmarks.results import CaseResult, Run, geometric_mean
from benchmarks.terminal import TIMES, duration

ROW = 0.2  # inches
WITH_FLOOR = "beside the floor"  # of ops whose cases come in no groups
NO_FLOOR = "too small for a floor: beside the best of torch"
SIZES = {EAGER: 6.0, BEST: 4.0, COMPILED: 4.0, OURS: 7.0}  # of the dots, the last on top
SLOWER = "#d1495b"
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
# Columns of text beside the axes, in widths of the axes.
EQUATION, LABEL_SIZES, TORCH_TIME, OUR_TIME, SPEEDUP = -0.92, -0.48, 1.15, 1.31, 1.43
LONGEST = 24  # letters between the first two


def ops(run: Run) -> list[str]:
    """The ops of a run."""
    return list(dict.fromkeys(case.op for case in run.cases))


def file_name(run: Run, op: str) -> str:
    """The name of the picture's file."""
    return f"benchmarks-{run.device}-{op}.png"


def draw(run: Run, op: str, file: Path) -> None:
    """Draws all cases of an op into a PNG file, group by group."""
    sections: dict[str, list[CaseResult]] = {}
    for case in run.cases:
        if case.op == op:
            section = (case.group or WITH_FLOOR) if case.has_floor else NO_FLOOR
            sections.setdefault(section, []).append(case)
    if NO_FLOOR in sections:
        sections[NO_FLOOR] = sections.pop(NO_FLOOR)  # to the end
    rows = sum(len(cases) + 2 for cases in sections.values())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, ROW * rows))
        top = 0
        for name, cases in sections.items():
            _heading(axes, top, name, cases)
            for row, case in enumerate(cases, start=top + 1):
                _row(axes, row, case)
            bottom = top + len(cases) + 0.6
            axes.plot([1, 1], [top + 0.4, bottom], color="0.2", linewidth=0.8, zorder=1)
            top += len(cases) + 2
        cases = [case for section in sections.values() for case in section]
        _frame(axes, top - 1, cases)
        over = "the floor" if any(case.has_floor for case in cases) else "the best of torch"
        title = f"{op}: time over {over}, on {run.machine.title}  ·  {run.date}"
        axes.text(EQUATION, 1 + 5.2 / rows, title, transform=axes.transAxes, weight="bold")
        figure.savefig(file, dpi=150, bbox_inches="tight")
        plt.close(figure)


def _heading(axes: Axes, row: float, name: str, cases: Sequence[CaseResult]) -> None:
    _beside(axes, EQUATION, row, name, weight="bold")
    over_torch = geometric_mean([case.speedup_over(EAGER) for case in cases])
    of_floor = geometric_mean([case.ratio_to(FLOOR) for case in cases])
    parts = [f"{over_torch:.2f}{TIMES} as fast as torch"] if over_torch else []
    if of_floor and name != NO_FLOOR:
        parts.append(f"{of_floor:.0%} of the floor")
    if parts:
        text = f"geometric mean: {', '.join(parts)}"
        _beside(axes, SPEEDUP, row, text, ha="right", color="0.35")


def _row(axes: Axes, row: float, case: CaseResult) -> None:
    equation, _, sizes = case.name.partition(", ")
    for known in ("out=", "forward + backward", "forward", ", "):  # the group says it
        sizes = sizes.removesuffix(known)
    label = _beside(axes, EQUATION, row, equation, family="monospace")
    small = {"color": "0.45", "fontsize": 7, "va": "center"}
    if len(equation) <= LONGEST:
        _beside(axes, LABEL_SIZES, row, sizes, **small)
    else:
        behind = {"xy": (1, 0.5), "xycoords": label}
        axes.annotate(sizes, **behind, xytext=(6, 0), textcoords="offset points", **small)
    torch, ours = case[EAGER], case[OURS]
    if not (torch and torch.seconds and ours and ours.seconds):
        _beside(axes, 0.02, row, "did not run", color="0.6", fontsize=7)
        return
    plain = case[BEST] or torch
    floor = case.floor if case.has_floor else plain.seconds or torch.seconds
    ends = [torch.seconds / floor, ours.seconds / floor]
    slower = ends[1] > 1.05 * ends[0]
    axes.plot(ends, [row, row], color=SLOWER if slower else "0.8", linewidth=2, zorder=2)
    for depth, (name, size) in enumerate(SIZES.items(), start=3):
        one = case[name]
        if one and one.seconds:
            x = one.seconds / floor
            axes.plot(x, row, "o", color=COLORS[name], markersize=size, mew=0, zorder=depth)
    _beside(axes, TORCH_TIME, row, duration(torch.seconds), ha="right", fontsize=7)
    _beside(axes, OUR_TIME, row, duration(ours.seconds), ha="right", fontsize=7)
    style = {"color": SLOWER} if slower else {}
    ratio = f"{torch.seconds / ours.seconds:.1f}{TIMES}"
    _beside(axes, SPEEDUP, row, ratio, ha="right", fontsize=7, weight="bold", **style)


def _frame(axes: Axes, bottom: float, cases: Sequence[CaseResult]) -> None:
    """The axis on top, where a reader starts, and what the colours mean."""
    axes.set_ylim(bottom, -0.8)
    axes.set_xscale("log")
    axes.margins(x=0.04)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}{TIMES}"))
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(axis="x", color="0.93")
    for name in SIZES:
        if any(one.seconds for case in cases if (one := case[name])):
            axes.plot([], [], "o", color=COLORS[name], markersize=SIZES[name], label=name)
    line = "floor" if any(case.has_floor for case in cases) else "best of torch"
    axes.plot([], [], color="0.2", linewidth=0.8, label=line)
    heads = ((TORCH_TIME, EAGER), (OUR_TIME, OURS), (SPEEDUP, "faster"))
    for x, text in heads:
        _beside(axes, x, -1.4, text, ha="right", fontsize=7, color="0.35")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(EQUATION - 0.02, 1 + 2.0 / bottom),
        frameon=False,
        fontsize=8,
        ncols=5,
        handletextpad=0.3,
        borderpad=0,
    )


def _beside(axes: Axes, x: float, row: float, text: str, **style: object) -> Text:
    """Text at a fraction of the width, inside the axes or beside them."""
    style = {"fontsize": 8, "va": "center", **style}
    return axes.text(x, row, text, transform=axes.get_yaxis_transform(), **style)
