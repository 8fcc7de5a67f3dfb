"""One moving line on standard error while pyext compiles; plain lines when it is no terminal."""

from __future__ import annotations

import re
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class BuildProgress:
    """Follows a build by its log.

    Args:
        steps: how many files are compiled and libraries linked when all are out of date.
        title: what is being compiled and for what.
    """

    def __init__(self, steps: int, title: str) -> None:
        self._steps = steps
        self._title = title
        self._done = 0
        self._start = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> BuildProgress:
        if sys.stderr.isatty():
            self._bar = _rich_bar(self._title, self._steps)
        if self._bar is None:
            _say(f"{self._title} ...")
        return self

    def read(self, line: str) -> None:
        """Takes one line of the log; ninja prints one with `[i/n]` for each step it has done."""
        if not re.match(r"\[\d+/\d+\] ", line):
            return
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)
        elif self._done % max(1, self._steps // 4) == 0:
            _say(f"{self._done} of {self._steps} steps done")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None:
            _say(f"compiled in {time.monotonic() - self._start:.0f} s; later imports use the cache")


def _rich_bar(title: str, steps: int) -> Progress | None:
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return None
    columns = (
        progress.TextColumn("pyext: {task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )
    bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(title, total=steps)
    bar.start()
    return bar


def _say(text: str) -> None:
    print(f"pyext: {text}", file=sys.stderr, flush=True)
