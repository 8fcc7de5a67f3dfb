"""The picture of a run: speed-ups as bars, and how near each candidate comes to the floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import blended_transform_factory

from benchmarks.case import BEST, COMPILED, EAGER, OURS
from benchmarks.results import CaseResult, Run
from benchmarks.terminal import RIVALS, TIMES, duration, threads

COLORS = {EAGER: "#8d99ae", BEST: "#6a994e", COMPILED: "#e09f3e", OURS: "#1b6ca8"}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
DECADES = (0.01, 0.1, 1, 10, 100, 1000, 10_000)
GRAY = "0.45"
WIDTH, ROW, HEAD = 10.0, 0.52, 1.35  # inches; HEAD for title, legend and axis
LEFT, BARS = 0.01, 0.335  # shares of the width: where names begin, and where the axes do


def draw(run: Run, cases: Sequence[CaseResult], file: Path) -> None:
    """Draws cases of a run into a file, whose suffix says the format."""
    rivals = [name for name in RIVALS if any(case.speedup_over(name) for case in cases)]
    height = HEAD + ROW * len(cases)
    with plt.rc_context(STYLE):
        figure, (bars, floor) = plt.subplots(
            1, 2, sharey=True, figsize=(WIDTH, height), width_ratios=(3, 2)
        )
        figure.subplots_adjust(
            left=BARS, right=0.985, wspace=0.15, top=1 - 0.95 / height, bottom=0.3 / height
        )
        _speedups(bars, cases, rivals)
        _floor(floor, cases, rivals)
        figure.text(
            LEFT,
            1 - 0.12 / height,
            f"pyext {run.pyext} beside torch {run.machine.torch.partition('+')[0]}",
            size=13,
            weight="bold",
            va="top",
        )
        where = f"{run.machine.title}, {threads(run)}  ·  {run.date}  {run.busy}"
        figure.text(LEFT, 1 - 0.4 / height, where, size=8, color=GRAY, va="top")
        figure.legend(
            handles=_legend(rivals),
            loc="upper right",
            bbox_to_anchor=(0.99, 1 - 0.04 / height),
            frameon=False,
            fontsize=8.5,
            ncols=len(rivals) + 1,
            handletextpad=0.5,
            columnspacing=1.2,
        )
        figure.savefig(file, dpi=150)
        plt.close(figure)


def _legend(rivals: Sequence[str]) -> list[Artist]:
    bars: list[Artist] = [Patch(color=COLORS[name], label=f"over {name}") for name in rivals]
    dot = Line2D([], [], linestyle="", marker="o", markersize=7, color=COLORS[OURS], label=OURS)
    return [*bars, dot]


def _speedups(axes: Axes, cases: Sequence[CaseResult], rivals: Sequence[str]) -> None:
    height = 0.8 / max(1, len(rivals))
    found: list[float] = []
    for row, case in enumerate(cases):
        present = [(name, one.speedup) for name in rivals if (one := case[name]) and one.speedup]
        for index, (versus, (ratio, low, high)) in enumerate(present):
            found += ratio, low, high
            y = row + (index - (len(present) - 1) / 2) * height
            axes.barh(y, ratio - 1, 0.9 * height, left=1, color=COLORS[versus])
            axes.plot([low, high], [y, y], color="0.25", linewidth=0.8)
            text = f"{ratio:.1f}" if ratio < 99.5 else f"{ratio:.0f}"
            axes.text(max(ratio, high, 1) * 1.05, y, text, va="center", fontsize=7)
    axes.set_xscale("log")
    lowest, highest = min([0.9, *found]), max([1.5, *found])
    axes.set_xlim(0.9 * lowest, 1.35 * highest)  # room for the number
    axes.xaxis.set_major_locator(FixedLocator(TICKS if highest < 200 * lowest else DECADES))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}{TIMES}"))
    axes.axvline(1, color="0.2", linewidth=0.8)
    axes.grid(axis="x", color="0.92")
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title("times as fast as torch", fontsize=9)
    for row, case in enumerate(cases):
        _label(axes, row, case)


def _label(axes: Axes, row: int, case: CaseResult) -> None:
    """The op, its sizes, and the times from which the ratio comes, left of the bars."""
    torch, ours = case[EAGER], case[OURS]
    if torch and torch.seconds and ours and ours.seconds:
        times = f"{duration(torch.seconds)}  \N{RIGHTWARDS ARROW}  {duration(ours.seconds)}"
    else:
        times = "did not run"
    figure = axes.get_figure(root=True)
    assert figure is not None
    beside = blended_transform_factory(figure.transFigure, axes.transData)
    style: Any = {"transform": beside, "va": "center"}
    axes.text(LEFT, row - 0.2, case.op, fontsize=9, weight="bold", **style)
    axes.text(BARS - 0.01, row - 0.2, times, fontsize=8, color=COLORS[OURS], ha="right", **style)
    axes.text(LEFT, row + 0.2, case.name, fontsize=8, color=GRAY, **style)


def _floor(axes: Axes, cases: Sequence[CaseResult], rivals: Sequence[str]) -> None:
    highest = 1.0
    for row, case in enumerate(cases):
        if not case.has_floor:
            axes.text(0.02, row, "too small for a floor", va="center", fontsize=7, color="0.6")
            continue
        axes.plot([0, 1], [row, row], color="0.92", linewidth=1, zorder=0)
        for name in (*rivals, OURS):
            share = case.share_of_floor(name)
            if share:
                size = 7.5 if name == OURS else 5
                axes.plot(share, row, "o", color=COLORS[name], markersize=size, mew=0)
                highest = max(highest, share)
    axes.axvline(1, color="0.2", linewidth=0.8)
    axes.set_xlim(0, 1.06 * highest)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("share of the floor", fontsize=9)
