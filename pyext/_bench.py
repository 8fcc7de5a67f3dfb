"""What `python -m pyext bench` does: a minute's look at pyext beside torch, on this machine.

The cases, and what times and draws them, are those of `python -m benchmarks`. They lie beside the
C++ sources, in a checkout as in a wheel.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from pyext import _libraries
from pyext._toolchain import LoadError

if TYPE_CHECKING:
    from benchmarks.case import Case
    from benchmarks.results import Run


def check_drawing() -> None:
    """Checks, before a minute is spent, that a picture can be drawn.

    Raises:
        LoadError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise LoadError(
            "The picture of the benchmark needs matplotlib, which is not installed.",
            "Install it: `python -m pip install matplotlib`.",
        )


def choose(ops: Sequence[str], device: str) -> list[Case]:
    """The cases of some ops, or of all when none is named.

    Raises:
        ValueError: there is no such op, case or device.
    """
    sys.path.insert(0, str(_libraries.source_root()))
    from benchmarks import session

    return session.choose(ops, device, quick=True)


def measure(
    cases: Sequence[Case], device: str, threads: int | None, compiled: bool, console: Console
) -> Run:
    """Times torch and pyext in turns.

    Args:
        cases: from :func:`choose`.
        device: "cpu" or "cuda".
        threads: how many threads torch and pyext use; torch's own choice if left out.
        compiled: whether torch.compile takes part.
        console: for the progress bar.
    """
    from benchmarks import session

    if threads is not None:
        torch.set_num_threads(threads)
    seconds = session.QUICK_SECONDS
    return session.measure(cases, device, seconds, compiled=compiled, quick=True, console=console)


def report(run: Run, console: Console | None, picture: Path | None) -> None:
    """Shows a run as a table, or as JSON where there is no console for it, and draws it."""
    from benchmarks import results, terminal

    if console:
        terminal.show_summary(run, console)
    else:
        print(results.to_json(run))
    if picture:
        from benchmarks import picture as drawing

        drawing.draw(run, run.cases, picture)
