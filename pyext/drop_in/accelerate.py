"""`pyext.accelerate`: a program's own calls of torch go to pyext while it is on."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar, overload

import torch

from pyext.drop_in import report as reporting
from pyext.drop_in._redirections import REDIRECTIONS

__all__ = ["Acceleration", "accelerate"]

Function = TypeVar("Function", bound=Callable[..., Any])

_lock = threading.Lock()
_asked = dict.fromkeys(REDIRECTIONS, 0)  # how many accelerations ask for a group at this moment


def _ask(group: str, change: int) -> None:
    """One acceleration more, or less, asks for a group; the first and the last have an effect."""
    _asked[group] += change
    if _asked[group] == (change > 0):
        for redirection in REDIRECTIONS[group]:
            (redirection.install if change > 0 else redirection.uninstall)()


class Acceleration:
    """What :data:`pyext.accelerate` gives: on from the start, a context manager, a decorator."""

    def __init__(self, groups: tuple[str, ...]) -> None:
        self._groups = groups
        self._is_on = False
        self._entered = 0
        self._turn(True)

    def undo(self) -> None:
        """Turns it off. What others have asked for stays on."""
        self._turn(False)

    def __enter__(self) -> Acceleration:
        self._turn(True)
        self._entered += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if not self._entered:
            self.undo()

    def __call__(self, function: Function) -> Function:
        """A function during which it is on; not before and not after."""
        self.undo()
        return _decorated(function, self._groups)

    def _turn(self, on: bool) -> None:
        if torch.compiler.is_compiling():  # a compiled region is torch's, and that of its compiler
            return
        with _lock:
            if on == self._is_on:
                return
            self._is_on = on
            for group in self._groups:
                _ask(group, 1 if on else -1)


class Accelerate:
    """Leads a program's calls of torch to pyext; the program stays as it is.

    Called, it is on until the returned object's ``undo()``; or it is on for a ``with`` block; or,
    as a decorator, during a function::

        pyext.accelerate()                     with pyext.accelerate():    @pyext.accelerate
                                                   train()                 def train(): ...

    ================= =======================================================================
    group             what it leads to pyext
    ================= =======================================================================
    ``einsum``        :func:`torch.einsum`
    ``bilinear``      :func:`torch.nn.functional.bilinear`, :class:`torch.nn.Bilinear`
    ``cross_entropy`` :func:`torch.nn.functional.cross_entropy`,
                      :class:`torch.nn.CrossEntropyLoss`
    ``adam``          optimizers that are made: :class:`torch.optim.Adam` and ``AdamW``
    ================= =======================================================================

    pyext takes a call where it gives torch's result to rounding, in torch's dtype; torch keeps all
    others: sparse, quantized, nested, meta and fake tensors, subclasses, other devices, dtypes
    that differ or that pyext has not, Adam of float16 parameters, and calls under a
    ``TorchDispatchMode``, in ``torch.jit.trace`` and in regions of ``torch.compile``. An error is
    always torch's own. Where the results of torch are accidents they are not repeated: the gradient
    of NaN in an ignored row is 0, and on a GPU a class index that is out of range gives the loss
    NaN, where torch's kernel aborts the process.

    It holds for the whole process and all of its threads; other processes turn it on themselves.
    Blocks may be nested, and end in any order: on is what any of them asks for. A backward pass
    that computes something once more (``torch.utils.checkpoint``) belongs into the same block.

    It does not matter when a program imported ``einsum``, ``cross_entropy``, ``Adam`` or ``AdamW``
    by name; only ``from torch.nn.functional import bilinear``, if it came before, calls torch's. An
    optimizer is of the class :class:`pyext.optim.Adam` or ``AdamW``, a subclass of torch's, for
    good; it is pickled as such, and its state dict is one of torch's. Subclasses that a program has
    made of torch's classes stay what they are.

    Args:
        function: a function during which it shall be on.
        only: the groups, all if None; a name or several.

    Returns:
        An :class:`~pyext.drop_in.Acceleration`, or the decorated function.

    Raises:
        ValueError: an unknown group.
        TypeError: something other than a plain function is decorated.

    Example:
        >>> import torch, pyext
        >>> with pyext.accelerate(only=("einsum", "adam")):
        ...     x = torch.einsum("ij,kj->ik", torch.ones(2, 3), torch.ones(4, 3))
        >>> pyext.accelerate.report()["einsum"].pyext >= 1
        True
    """

    @overload
    def __call__(
        self, function: Function, *, only: str | Iterable[str] | None = ...
    ) -> Function: ...
    @overload
    def __call__(self, *, only: str | Iterable[str] | None = ...) -> Acceleration: ...
    def __call__(self, function: Any = None, *, only: str | Iterable[str] | None = None) -> Any:
        """Turns it on, see :class:`Accelerate`."""
        groups = (only,) if isinstance(only, str) else tuple(REDIRECTIONS if only is None else only)
        for group in groups:
            if group not in REDIRECTIONS:
                known = ", ".join(map(repr, REDIRECTIONS))
                raise ValueError(f"accelerate(): unknown group {group!r}, expected some of {known}")
        return Acceleration(groups) if function is None else _decorated(function, groups)

    def report(self, *, reset: bool = False) -> reporting.Report:
        """Where calls went while it was on, in all threads, since the last ``reset``.

        Args:
            reset: whether counting then starts anew.
        """
        report = reporting.snapshot()
        if reset:
            reporting.clear()
        return report

    def __repr__(self) -> str:
        return "pyext.accelerate"


accelerate = Accelerate()


def _decorated(function: Function, groups: tuple[str, ...]) -> Function:
    if (
        not callable(function)
        or isinstance(function, type | torch.nn.Module)
        or inspect.iscoroutinefunction(function)
        or inspect.isgeneratorfunction(function)
        or inspect.isasyncgenfunction(function)
    ):
        # It would be on while they are made, and off while they run.
        raise TypeError(
            f"accelerate(): expected a plain function to decorate, got {function!r}; a with block "
            "serves everything else, and pyext.replace models"
        )

    @functools.wraps(function)
    def accelerated(*args: Any, **kwargs: Any) -> Any:
        with Acceleration(groups):
            return function(*args, **kwargs)

    return accelerated  # type: ignore[return-value]  # of the same signature
