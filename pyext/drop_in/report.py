"""How many calls of torch pyext has taken, and why it has not taken the others."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

GROUPS = ("einsum", "bilinear", "cross_entropy", "adam")


@dataclass
class Calls:
    """Where the calls of one group went.

    Attributes:
        pyext: how many calls pyext took.
        torch: how many calls torch kept, by reason.
    """

    pyext: int = 0
    torch: dict[str, int] = field(default_factory=dict)

    def left(self, reason: str) -> None:
        """Counts a call that torch keeps. Threads may lose a count to each other."""
        self.torch[reason] = self.torch.get(reason, 0) + 1


COUNTED = {group: Calls() for group in GROUPS}


@dataclass(frozen=True)
class Report:
    """Where the calls of each group went; to be printed, or asked: ``report["einsum"].pyext``.

    Attributes:
        calls: the counts by group.
    """

    calls: Mapping[str, Calls]

    def __getitem__(self, group: str) -> Calls:
        return self.calls[group]

    def __rich__(self) -> Table:
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("calls of")
        table.add_column("pyext", justify="right")
        table.add_column("torch", justify="right")
        table.add_column("why torch", overflow="fold")
        for group, calls in self.calls.items():
            reasons = sorted(calls.torch.items(), key=lambda item: -item[1])
            text = ", ".join(f"{reason} ({count:,})" for reason, count in reasons)
            table.add_row(group, f"{calls.pyext:,}", f"{sum(calls.torch.values()):,}", text)
        return table

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=100, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def snapshot() -> Report:
    """The counts as they are now."""
    return Report({name: Calls(calls.pyext, dict(calls.torch)) for name, calls in COUNTED.items()})


def clear() -> None:
    """Starts all counts from zero."""
    for calls in COUNTED.values():
        calls.pyext = 0
        calls.torch.clear()
