"""Trains two small models with torch's ops and with pyext's, and compares: `make demo`."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from benchmarks.terminal import duration
from examples.demo import picture
from examples.demo.digits import Digits
from examples.demo.language import Language
from examples.demo.ops import BUNDLES
from examples.demo.task import Comparison, Task, train

console = Console(highlight=False)


def main(
    out: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path("demo.png"),
    steps: Annotated[int | None, typer.Option(help="Fewer steps, for a quick try.")] = None,
) -> None:
    """Trains each task once with torch's ops and once with pyext's, from the same seeds."""
    start = time.perf_counter()
    tasks: list[Task] = [Digits(), Language()]
    console.print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads. Each task is trained twice "
        "from the same seeds, the two taking turns step by step: once with torch's ops, once with "
        "pyext's."
    )
    comparisons = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[losses]}")) as progress:
        for task in tasks:
            progress.console.print(f"[bold]{task.name}[/]: {task.about}")
            task.steps = steps or task.steps
            bar = progress.add_task(task.name, total=task.steps, losses="")

            comparisons.append(train(task, BUNDLES, partial(_advance, progress, bar)))
    console.print(_trainings(comparisons))
    console.print(_ops(comparisons))
    picture.draw(comparisons, out)
    console.print(f"{out} written; {time.perf_counter() - start:.0f} s in all")


def _advance(progress: Progress, bar: TaskID, losses: str) -> None:
    progress.update(bar, advance=1, losses=losses)


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for index, title in enumerate(titles):
        table.add_column(title, justify="left" if index < 2 else "right")
    return table


def _trainings(comparisons: list[Comparison]) -> Table:
    table = _table("task", "ops", "training loss", "held out", "time per step", "")
    for one in comparisons:
        torch_step = one.traces[0].seconds_per_step
        for index, trace in enumerate(one.traces):
            table.add_row(
                one.task.name if index == 0 else "",
                trace.ops.name,
                f"{trace.final_loss:.4f}",
                f"{one.task.metric} {trace.metric:.4g}",
                duration(trace.seconds_per_step),
                f"{torch_step / trace.seconds_per_step:.2f}x" if index else "",
            )
    return table


def _ops(comparisons: list[Comparison]) -> Table:
    table = _table("\nop, forward + backward", "\nof", "\ntorch", "\npyext", "\n")
    for one in comparisons:
        for name, (torch_seconds, ours) in one.op_seconds.items():
            times = (duration(seconds) for seconds in (torch_seconds, ours))
            table.add_row(name, one.task.name, *times, f"{torch_seconds / ours:.2f}x")
    return table


if __name__ == "__main__":
    typer.run(main)
