"""Which calls of torch pyext takes: those whose result it gives to rounding, in the same dtype.

A reason says why torch must compute something itself; None, that pyext may.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

HALVES = frozenset({torch.float16, torch.bfloat16})
REALS = HALVES | {torch.float32, torch.float64}
NUMBERS = REALS | {torch.complex64, torch.complex128}
SUMMED = NUMBERS | {torch.int64}  # torch.einsum widens smaller integers here, fails with them there
INDICES = frozenset({torch.int64})
STEPPED = NUMBERS - {torch.float16}  # torch's step computes in it: squares of gradients underflow


def of_tensors(tensors: Iterable[Any], dtypes: frozenset[torch.dtype]) -> str | None:
    """The reason that lies in arguments: they must be plain tensors, all of one of `dtypes`."""
    dtype = None
    for x in tensors:
        if type(x) is not Tensor and type(x) is not Parameter:
            return f"a {type(x).__name__}"
        if not (x.is_cpu or x.is_cuda):
            return f"device {x.device.type}"
        if x.is_nested:
            return "a nested tensor"
        if x.layout is not torch.strided:
            return f"layout {_short(x.layout)}"
        if x.dtype not in dtypes:
            return f"dtype {_short(x.dtype)}"
        if dtype is not None and x.dtype is not dtype:
            return "dtypes that differ"
        dtype = x.dtype
    return None


def of_this_moment() -> str | None:
    """The reason that lies in no argument: somebody records which of torch's ops are called."""
    if torch._C._len_torch_dispatch_stack():
        return "a TorchDispatchMode"
    if torch._C._get_tracing_state():
        return "torch.jit.trace"
    return None


@functools.lru_cache(maxsize=4096)
def of_equation(equation: str) -> str | None:
    """The reason that lies in an equation: pyext understands it, and torch raises an error."""
    if not equation.isascii():
        return "labels other than letters"
    output = equation.partition("->")[2].replace(".", "").replace(" ", "")
    return "labels that repeat in the output" if len(set(output)) < len(output) else None


def of_autocast(x: Tensor) -> str | None:
    """The reason where autocast has a dtype for each op that a function of torch is made of."""
    return "autocast" if torch.is_autocast_enabled(x.device.type) else None


def of_optimizer(optimizer: torch.optim.Optimizer) -> str | None:
    """The reason that lies in the options and parameters of an optimizer."""
    if optimizer.defaults["differentiable"]:
        return "differentiable=True"
    for group in optimizer.param_groups:
        for param in group["params"]:
            reason = of_tensors((param,), STEPPED)
            if reason:
                return reason
    return None


def _short(what: object) -> str:
    return str(what).removeprefix("torch.")
