"""The command line: `python -m benchmarks [--quick] [--op ...]`, `report`, `check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import check as check_module
from benchmarks import results, session, terminal

app = typer.Typer(add_completion=False, help="Measures pyext's ops beside torch's own.")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="The few cases of `python -m pyext bench`, in detail.")
    ] = False,
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
    try:
        cases = session.choose(op or (), device, quick)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    seconds = seconds or (session.QUICK_SECONDS if quick or device == "cuda" else 4.0)
    done = session.measure(cases, device, seconds, compiled=compile_, quick=quick, console=err)
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
    from benchmarks import report  # which draws: what measures does without matplotlib

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
