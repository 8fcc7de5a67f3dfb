"""Which ops of torch.ops.pyext a piece of code calls, and with what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Call = tuple[torch._ops.OpOverload, tuple[Any, ...], dict[str, Any]]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "pyext":
            copies = tree_map_only(torch.Tensor, lambda x: x.detach().clone(), (args, kwargs))
            self.calls.append((func, *copies))
        return func(*args, **kwargs)


def calls_of(code: Callable[[], Any]) -> list[Call]:
    """The calls of our ops below autograd, in order, those of the backward included."""
    with _Recorder() as recorder:
        code()
    return recorder.calls
