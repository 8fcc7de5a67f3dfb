"""The command line: `python -m pyext doctor | build | bench | ops | clean`."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import pyext
from pyext import _cache, _libraries, _load
from pyext._toolchain import LoadError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Custom PyTorch ops: what is loaded, what is wrong, and how fast it is here.",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class InstructionSet(str, enum.Enum):
    """What `build --isa` takes."""

    default = "default"
    avx2 = "avx2"
    avx512 = "avx512"
    all = "all"


def _show_version(asked: bool) -> None:
    if asked:
        out.print(f"pyext {pyext.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    try:
        yield
    except LoadError as error:
        _print_problem("error: ", error)
        raise typer.Exit(1) from None


def _print_problem(head: str, error: LoadError) -> None:
    err.print(Text.assemble((head, "red"), error.problem), soft_wrap=True)
    err.print(Text.assemble(("remedy: ", "green"), error.remedy), soft_wrap=True)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what is loaded and why, and how to mend what is wrong. Exits with 1 on a problem."""
    from pyext import _doctor

    findings = _doctor.examine()
    problems = [finding for finding in findings if finding.problem]
    if as_json:
        print(json.dumps(_doctor.report(findings), indent=2))
    else:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for finding in findings:
            mark = Text("✗", "red") if finding.problem else Text("✓", "green")
            table.add_row(mark, finding.topic, Text(finding.fact))
        out.print(table)
        for finding in problems:
            problem = Text.assemble((f"\n{finding.topic}: ", "red"), finding.problem or "")
            out.print(problem, soft_wrap=True)
            out.print(Text.assemble(("remedy: ", "green"), finding.remedy or ""), soft_wrap=True)
    raise typer.Exit(1 if problems else 0)


@app.command()
def build(
    isa: Annotated[
        InstructionSet | None, typer.Option(help="Instruction set; this processor's if left out.")
    ] = None,
    cuda: Annotated[bool, typer.Option("--cuda", help="Fail when CUDA cannot be built.")] = False,
    compile_only: Annotated[
        bool,
        typer.Option(
            "--compile-only",
            help="Only check that the CUDA sources compile; needs nvcc, but neither GPU nor CUDA "
            "torch.",
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the compilers' output.")
    ] = False,
) -> None:
    """Compile now what the first `import pyext` would compile, for example in a container image."""
    import torch

    from pyext import _jit, _toolchain

    root = _libraries.source_root()
    with _errors_as_messages():
        if compile_only:
            from pyext import _cuda_check

            out.print(_cuda_check.compile_all(root, verbose))
            return
        choice = _load.choose()
        if choice.built_ahead:
            out.print(f"pyext was built when it was installed: {choice.folder}", soft_wrap=True)
            return
        target = _jit.this_machine(root)
        if cuda:
            problem = _toolchain.cuda_problem(torch.version.cuda)
            if problem:
                raise problem
            settings = _libraries.build_settings(root)
            architectures = _jit.cuda_architectures() or settings["cuda_architectures"]
            target = _jit.Target(target.instruction_sets, tuple(architectures))
        if isa:
            sets = _libraries.instruction_sets(root) if isa.value == "all" else [isa.value]
            target = _jit.Target(tuple(sets), target.cuda)
        folder = _jit.find(root, target) or _jit.build(root, target, verbose)
        out.print(f"{folder}", soft_wrap=True)


@app.command()
def bench(
    op: Annotated[list[str] | None, typer.Option(help="Only this op; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads for all; torch's own choice if left out.")
    ] = None,
    compile_: Annotated[
        bool,
        typer.Option("--compile", help="Let torch.compile take part; some minutes more."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            dir_okay=False,
            writable=True,
            help="The picture (.png, .svg, .pdf); bench.png if left out, none with --json.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure torch and pyext in turns on this machine: a minute, a table and a picture."""
    from pyext import _bench, _doctor

    if output and output.suffix not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"{output} does not end in .png, .svg or .pdf")
    if output and not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder {output.parent} is not there")
    with _errors_as_messages():
        if output:
            _bench.check_drawing()
        elif not as_json:
            output = _default_picture()
        _doctor.load_for_command_line()
        try:
            cases = _bench.choose(op or (), device)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        run = _bench.measure(cases, device, threads, compile_, err)
        _bench.report(run, None if as_json else out, output)
    if output:
        err.print(f"written: {output}", soft_wrap=True)
    raise typer.Exit(1 if run.failures else 0)


def _default_picture() -> Path | None:
    """Where a picture goes that nobody asked for; None, and a word about it, if it cannot."""
    from pyext import _bench

    try:
        _bench.check_drawing()
    except LoadError as error:
        _print_problem("no picture: ", error)
        return None
    return Path("bench.png")


@app.command()
def ops() -> None:
    """List the ops: their schemas and the devices that have a kernel."""
    from pyext import _doctor

    with _errors_as_messages():
        _doctor.load_for_command_line()
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("op")
        table.add_column("devices")
        table.add_column("signature", overflow="fold")
        for op in _doctor.registered_ops():
            table.add_row(op.name, ", ".join(op.devices), Text(op.signature))
        out.print(table)


@app.command()
def clean() -> None:
    """Remove everything that pyext has compiled into the cache."""
    with _errors_as_messages():
        root = _cache.cache_root()
        out.print(f"{_cache.clean(root) / 1e6:.1f} MB removed from {root}", soft_wrap=True)


if __name__ == "__main__":
    app()
