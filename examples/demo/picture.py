"""Draws demo.png: loss curves that should lie on each other, and bars of time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.terminal import duration
from examples.demo.task import Comparison

STYLES = (  # of torch's curve and pyext's: a thin line on a broad one
    {"color": "#b8c4d9", "linewidth": 5.0},
    {"color": "#1b6ca8", "linewidth": 1.2},
)


def draw(comparisons: Sequence[Comparison], file: Path) -> None:
    """One panel of losses per task, and below them the times of steps and of single ops."""
    style: Any = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
    }
    rows = sum(1 + len(one.op_seconds) for one in comparisons)
    with plt.rc_context(style):
        figure = plt.figure(figsize=(9, 4.2 + 0.42 * rows), layout="constrained")
        curves, bars = figure.subfigures(2, 1, height_ratios=(3.4, 0.8 + 0.42 * rows))
        panels = curves.subplots(1, len(comparisons), squeeze=False)[0]
        for axes, comparison in zip(panels, comparisons, strict=True):
            _losses(axes, comparison)
        _times(bars.subplots(), comparisons)
        figure.savefig(file, dpi=150)
        plt.close(figure)


def _losses(axes: Axes, comparison: Comparison) -> None:
    for trace, style in zip(comparison.traces, STYLES, strict=True):
        label = f"{trace.ops.name}: {comparison.task.metric} {trace.metric:.4g}"
        axes.plot(range(1, len(trace.losses) + 1), trace.losses, label=label, **style)
    torch, ours = comparison.traces
    largest = max(abs(a - b) for a, b in zip(torch.losses, ours.losses, strict=True))
    axes.set_title(f"{comparison.task.name}: training loss")
    axes.set_xlabel(f"step  (largest difference {largest:.2g})")
    axes.legend(frameon=False)


def _times(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    labels, pairs = [], []
    for one in comparisons:
        labels.append(f"{one.task.name}: training step")
        pairs.append([trace.seconds_per_step for trace in one.traces])
        for name, seconds in one.op_seconds.items():
            labels.append(name)
            pairs.append(seconds)
    height = 0.4
    for row, pair in enumerate(pairs):
        for index, seconds in enumerate(pair):
            y = row + (index - 0.5) * height
            share = seconds / pair[0]
            axes.barh(y, share, height, color=STYLES[index]["color"])
            text = duration(seconds)
            if index:
                text += f", {pair[0] / seconds:.1f} times as fast"
            axes.text(share + 0.008, y, text, va="center", fontsize=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    longest = max(seconds / pair[0] for pair in pairs for seconds in pair)
    axes.set_xlim(0, longest + 0.4)  # room for its text
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_title("time of a step, and of single ops forward + backward (torch = full length)")
