"""One session: chooses cases, measures them one after the other, and shows how far it is."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import pyext
from benchmarks import case as case_module
from benchmarks import floors, machine, runner
from benchmarks.case import Case
from benchmarks.results import BUSY, Run

QUICK_SECONDS = 1.0  # of timing for a case that a minute's look measures


def choose(ops: Sequence[str], device: str, quick: bool) -> list[Case]:
    """The cases of some ops, or of all when none is named.

    Raises:
        ValueError: an op is unknown or has no such case, or the device is unknown or missing.
    """
    known = case_module.ops()
    for name in ops:
        if name not in known:
            raise ValueError(f"unknown op {name!r}; there are {', '.join(known)}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; there are cpu and cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA GPU here")
    cases = [case for name in ops or known for case in case_module.cases(name, device)]
    chosen = [case for case in cases if case.quick or not quick]
    if not chosen:
        raise ValueError(f"there is no quick case of {', '.join(ops)} for {device}")
    return chosen


def measure(
    cases: Sequence[Case],
    device: str,
    seconds: float,
    *,
    compiled: bool,
    quick: bool,
    console: Console,
) -> Run:
    """Measures cases, with a progress bar on `console`.

    Args:
        cases: what to measure.
        device: where.
        seconds: how long the timing of a case should take.
        compiled: whether torch.compile takes part.
        quick: whether this is a minute's look; said in the result.
        console: for the bar and for what disturbs.
    """
    load = os.getloadavg()[0]
    if load > BUSY:
        console.print(f"The machine is busy (load {load:.1f}): expect noise.", style="yellow")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        total = progress.add_task("floors", total=len(cases))
        rounds = progress.add_task("rounds", total=None)
        limits = floors.measure(device, min(seconds, 2.0))
        done = Run(
            machine=machine.this_machine(device),
            device=device,
            date=datetime.date.today().isoformat(),
            pyext=pyext.__version__,
            quick=quick,
            threads=torch.get_num_threads(),
            load=load,
            bandwidth=limits.bandwidth,
            gemm_rate=limits.gemm_rate,
        )
        for case in cases:
            progress.update(total, description=f"{case.op} {case.name}")
            progress.reset(rounds, total=None)

            def on_round(index: int, count: int) -> None:
                progress.update(rounds, completed=index, total=count)

            done.cases.append(runner.run_case(case, device, limits, seconds, on_round, compiled))
            progress.advance(total)
    return done
