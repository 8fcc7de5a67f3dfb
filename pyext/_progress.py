"""One moving line on standard error while pyext compiles; plain lines when it is no terminal."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from pyext._compile import LIBRARY_MARK

if TYPE_CHECKING:
    from rich.progress import Progress


class BuildProgress:
    """Follows a build by its log.

    Args:
        steps: how many files each library compiles and links, in the order of building.
        title: what is being compiled and for what.
    """

    def __init__(self, steps: Mapping[str, int], title: str) -> None:
        self._steps = steps
        self._total = sum(steps.values())
        self._title = title
        self._done = 0  # steps of the libraries before the current one
        self._library = ""
        self._start = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> BuildProgress:
        if sys.stderr.isatty():
            self._bar = _rich_bar(self._title, self._total)
        if self._bar is None:
            _say(f"{self._title} ...")
        return self

    def read(self, line: str) -> None:
        """Takes one line of the log."""
        if line.startswith(LIBRARY_MARK):
            self._done += self._steps.get(self._library, 0)
            self._library = line[len(LIBRARY_MARK) :].strip()
            self._show(self._done)
        step = re.match(r"\[(\d+)/(\d+)\] ", line)
        if step and self._library:
            # ninja counts only what is out of date
            part = self._steps[self._library] * int(step[1]) // int(step[2])
            self._show(self._done + part)

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

    def _show(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, library=self._library)
        elif done == self._done:
            _say(f"{done}/{self._total} steps done, now {self._library}")


def _rich_bar(title: str, total: int) -> Progress | None:
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return None
    columns = (
        progress.TextColumn("pyext: {task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[library]}"),
        progress.TimeElapsedColumn(),
    )
    bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(title, total=total, library="")
    bar.start()
    return bar


def _say(text: str) -> None:
    print(f"pyext: {text}", file=sys.stderr, flush=True)
