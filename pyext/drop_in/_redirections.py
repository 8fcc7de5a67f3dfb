"""How calls of torch are led to pyext, and back.

`torch.einsum` and `F.cross_entropy` are Python functions, and are given another body: they stay the
objects that programs have imported by name, that torch calls itself, and that its compilers know.
`F.bilinear` is a built-in, which has no body to exchange: its names in torch are bound to another
function. An optimizer is made by torch's own constructor, and then changes its class.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from pyext.drop_in import _coverage, _functions
from pyext.drop_in.report import COUNTED
from pyext.optim import Adam, AdamW


class Redirection(ABC):
    """A switch."""

    @abstractmethod
    def install(self) -> None:
        """Leads calls to pyext."""

    @abstractmethod
    def uninstall(self) -> None:
        """Makes torch what it was."""


class _Body(Redirection):
    """Exchanges the body of a Python function for a call of `target`."""

    def __init__(self, function: Any, body: Any, target: Callable[..., Any]) -> None:
        self._function, self._target = function, target
        self._own = code = function.__code__
        # TorchScript compiles the source at the place that the body names: that is torch's own.
        self._ours = body.__code__.replace(
            co_filename=code.co_filename, co_firstlineno=code.co_firstlineno, co_name=code.co_name
        )

    def install(self) -> None:
        self._function.__globals__[self._target.__name__] = self._target
        self._function.__code__ = self._ours

    def uninstall(self) -> None:
        self._function.__code__ = self._own
        # The target's name stays: a thread may be about to call it.


class _Attributes(Redirection):
    """Sets attributes of modules and classes."""

    def __init__(self, name: str, value: Callable[..., Any], *owners: Any) -> None:
        self._name, self._value = name, value
        self._own = [(owner, getattr(owner, name)) for owner in owners]

    def install(self) -> None:
        for owner, _ in self._own:
            setattr(owner, self._name, self._value)

    def uninstall(self) -> None:
        for owner, own in self._own:
            setattr(owner, self._name, own)


def _constructor(
    theirs: type[torch.optim.Optimizer], ours: type[Adam] | type[AdamW]
) -> _Attributes:
    """A constructor that makes an optimizer of pyext's class; of subclasses, what it always has."""
    construct = theirs.__init__

    @functools.wraps(construct)
    def __init__(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        construct(self, *args, **kwargs)
        if type(self) is not theirs:
            return
        reason = _coverage.of_optimizer(self)
        if reason is None:
            ours.adopt(self)
            COUNTED["adam"].pyext += 1
        else:
            COUNTED["adam"].left(reason)

    return _Attributes("__init__", __init__, theirs)


REDIRECTIONS: dict[str, tuple[Redirection, ...]] = {
    "einsum": (_Body(torch.functional.einsum, _functions.einsum_body, _functions.pyext_einsum),),
    "bilinear": (_Attributes("bilinear", _functions.pyext_bilinear, torch, F),),
    "cross_entropy": (
        _Body(F.cross_entropy, _functions.cross_entropy_body, _functions.pyext_cross_entropy),
    ),
    "adam": (_constructor(torch.optim.Adam, Adam), _constructor(torch.optim.AdamW, AdamW)),
}

# So that TorchScript takes a call of F.bilinear for what it is.
torch.jit._builtins._register_builtin(_functions.pyext_bilinear, "aten::bilinear")
