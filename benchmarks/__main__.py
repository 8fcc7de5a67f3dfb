"""The command line: `python -m benchmarks [--quick] [--op ...]`, `report`, `check`."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import pyext
from benchmarks import case as case_module
from benchmarks import check as check_module
from benchmarks import floors, machine, report, results, runner, terminal

app = typer.Typer(add_completion=False, help="Measures pyext's ops beside torch's own.")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="A minute's look at few cases.")] = False,
    op: Annotated[list[str] | None, typer.Option(help="Only this op; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Whether torch.compile takes part.")
    ] = True,
    seconds: Annotated[
        float | None,
        typer.Option(help="Timing of a case: 4 seconds; 1 on a GPU or with --quick."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--out", help="JSON file; a whole run writes benchmarks/results by default."),
    ] = None,
) -> None:
    """Runs the cases, shows a table, and keeps the numbers as JSON."""
    if context.invoked_subcommand:
        return
    known = case_module.ops()
    unknown = [name for name in op or () if name not in known]
    if unknown:
        raise typer.BadParameter(f"unknown op {unknown[0]!r}; there are {', '.join(known)}")
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"unknown device {device!r}; there are cpu and cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no CUDA GPU here")
    cases = [case for name in op or known for case in case_module.cases(name, device)]
    cases = [case for case in cases if case.quick or not quick]
    load = os.getloadavg()[0]
    if load > report.BUSY:
        err.print(f"The machine is busy (load {load:.1f}): expect noise.", style="yellow")
    seconds = seconds or (1.0 if quick or device == "cuda" else 4.0)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=err, transient=True) as progress:
        total = progress.add_task("floors", total=len(cases))
        rounds = progress.add_task("rounds", total=None)
        limits = floors.measure(device, min(seconds, 2.0))
        done = results.Run(
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

            done.cases.append(runner.run_case(case, device, limits, seconds, on_round, compile_))
            progress.advance(total)
    if not quick:
        done.groups.extend(results.judge_groups(cases, done.cases))
    terminal.show(done, out)
    whole = not (quick or op or not compile_)
    if file is None and whole:
        file = results.FOLDER / f"{done.machine.key}.json"
    if file:
        results.save(done, file)
        out.print(f"written to {file}", soft_wrap=True)
    raise typer.Exit(1 if done.failures else 0)


@app.command(name="report")
def write_report() -> None:
    """Rewrite the tables and pictures in README.md and docs/ from the committed results."""
    for file in report.write():
        out.print(f"written: {file}", soft_wrap=True)


@app.command()
def check(
    new: Annotated[Path, typer.Argument(help="JSON file of a new run.")],
    old: Annotated[
        Path | None, typer.Argument(help="What to compare with; default: the committed file.")
    ] = None,
) -> None:
    """Compare speed-ups, never seconds, with an earlier run; exits with 1 on a regression."""
    run_now = results.load(new)
    old = old or results.FOLDER / f"{run_now.machine.key}.json"
    if not old.exists():
        err.print(f"no results of this machine to compare with: {old} is not there")
        raise typer.Exit(2)
    findings = check_module.compare(results.load(old), run_now)
    terminal.show_comparison(findings, out)
    raise typer.Exit(1 if any(finding.regression for finding in findings) else 0)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
