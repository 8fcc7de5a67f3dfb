"""The picture of a run: speed-ups as bars, and how near each candidate comes to the floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.case import BEST, COMPILED, EAGER, OURS
from benchmarks.results import CaseResult, Run
from benchmarks.terminal import TIMES

COLORS = {EAGER: "#8d99ae", BEST: "#6a994e", COMPILED: "#e09f3e", OURS: "#1b6ca8"}
RIVALS = (EAGER, BEST, COMPILED)
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}


def draw(run: Run, file: Path) -> None:
    """Draws the headline cases of a run into a PNG file."""
    cases = [case for case in run.cases if case.headline]
    with plt.rc_context(STYLE):
        figure, (bars, floor) = plt.subplots(
            1,
            2,
            sharey=True,
            figsize=(10, 1.3 + 0.48 * len(cases)),
            width_ratios=(3, 2),
            layout="constrained",
        )
        _speedups(bars, cases)
        _floor(floor, cases)
        figure.suptitle(f"{run.machine.title}  ·  {run.date}", fontsize=8, color="0.35")
        figure.savefig(file, dpi=150, bbox_inches="tight")  # the legends reach beyond the axes
        plt.close(figure)


def _speedups(axes: Axes, cases: list[CaseResult]) -> None:
    height = 0.27
    for offset, versus in zip((-1, 0, 1), RIVALS, strict=True):
        for row, case in enumerate(cases):
            one = case[versus]
            if not (one and one.speedup):
                continue
            ratio, low, high = one.speedup
            y = row + offset * height
            axes.barh(y, ratio - 1, height, left=1, color=COLORS[versus])
            axes.plot([low, high], [y, y], color="0.2", linewidth=1)
            axes.text(max(ratio, high, 1) * 1.04, y, f"{ratio:.1f}", va="center", fontsize=7)
        axes.barh(0, 0, color=COLORS[versus], label=f"over {versus}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}{TIMES}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    lowest = min(one.speedup[0] for case in cases for one in case.measurements if one.speedup)
    axes.set_xlim(left=min(1.0, 0.9 * lowest))
    axes.set_xticks([1, 2, 5, 10, 20, 50], minor=False)
    axes.margins(x=0.12)
    axes.axvline(1, color="0.2", linewidth=0.8)
    axes.grid(axis="x", color="0.92")
    axes.set_yticks(range(len(cases)), [f"{case.op}  {case.name}" for case in cases])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.set_title("times as fast as torch")
    _legend_below(axes, columns=3)


def _floor(axes: Axes, cases: list[CaseResult]) -> None:
    for row, case in enumerate(cases):
        if not case.has_floor:
            axes.text(0.02, row, "too small for a floor", va="center", fontsize=7, color="0.6")
            continue
        axes.plot([0, 1], [row, row], color="0.92", linewidth=1, zorder=0)
        for name in (*RIVALS, OURS):
            share = case.share_of_floor(name)
            if share:
                axes.plot(share, row, "o", color=COLORS[name], markersize=7 if name == OURS else 5)
    for name in (*RIVALS, OURS):
        axes.plot([], [], "o", color=COLORS[name], label=name)
    axes.axvline(1, color="0.2", linewidth=0.8)
    axes.set_xlim(0, 1.08)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("of the floor")
    _legend_below(axes, columns=2)


def _legend_below(axes: Axes, columns: int) -> None:
    below = {"loc": "upper right", "bbox_to_anchor": (1.0, -0.03)}
    close = {"handletextpad": 0.4, "columnspacing": 1.0}
    axes.legend(frameon=False, fontsize=8, ncols=columns, **close, **below)
