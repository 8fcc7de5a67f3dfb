"""The functions that calls of torch are led to: pyext where it covers the call, torch otherwise.

What pyext refuses is torch's too: its result, or its error. A call that torch hands to a tensor
subclass or a TorchFunctionMode is counted when it comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function

from pyext.drop_in import _coverage
from pyext.drop_in.report import COUNTED
from pyext.ops.bilinear import bilinear
from pyext.ops.cross_entropy import cross_entropy
from pyext.ops.einsum import as_equation, einsum

# Not every Exception: torch.utils.checkpoint ends a computation by one of its own.
REFUSALS = (IndexError, RuntimeError, TypeError, ValueError)


def _copied(function: Any) -> Callable[..., Tensor]:
    """The function as it is now, whatever becomes of its body."""
    parts = (function.__code__, function.__globals__, function.__name__, function.__defaults__)
    return FunctionType(*parts, function.__closure__)


THEIR_EINSUM = _copied(torch.functional.einsum)
THEIR_CROSS_ENTROPY = _copied(F.cross_entropy)
THEIR_BILINEAR: Callable[..., Tensor] = torch.bilinear


def pyext_einsum(*args: Any) -> Tensor:
    """torch.einsum, by pyext where it can be."""
    if has_torch_function(args) or len(args) < 2:
        return THEIR_EINSUM(*args)
    if len(args) == 2 and isinstance(args[1], list | tuple) and isinstance(args[0], str):
        return pyext_einsum(args[0], *args[1])
    calls = COUNTED["einsum"]
    try:
        equation, operands = as_equation(*args)
        reason = (
            _coverage.of_tensors(operands, _coverage.SUMMED)
            or _coverage.of_this_moment()
            or _coverage.of_equation(equation)
            or _coverage.of_autocast(operands[0])
        )
        if reason is None:
            result = einsum(equation, *operands)
            calls.pyext += 1
            return result
    except REFUSALS as error:
        reason = _refused(error)
    calls.left(reason)
    return THEIR_EINSUM(*args)


def pyext_cross_entropy(
    input: Any,
    target: Any,
    weight: Any,
    size_average: Any,
    ignore_index: Any,
    reduce: Any,
    reduction: Any,
    label_smoothing: Any,
) -> Tensor:
    """F.cross_entropy, by pyext where it can be."""
    args = (input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    if has_torch_function((input, target, weight)):
        return THEIR_CROSS_ENTROPY(*args)
    calls = COUNTED["cross_entropy"]
    try:
        reason = _why_torchs_loss(input, target, weight, label_smoothing)
        if size_average is not None or reduce is not None:
            reason = "size_average or reduce"  # deprecated, with warnings that torch gives
        if reason is None:
            half = input.dtype in _coverage.HALVES
            result = cross_entropy(
                input,
                target,
                weight,
                ignore_index=ignore_index,
                reduction=reduction,
                label_smoothing=label_smoothing,
                # That of the input; float32 under autocast.
                out_dtype=input.dtype if half and not _coverage.of_autocast(input) else None,
            )
            calls.pyext += 1
            return result
    except REFUSALS as error:
        reason = _refused(error)
    calls.left(reason)
    return THEIR_CROSS_ENTROPY(*args)


def _why_torchs_loss(input: Any, target: Any, weight: Any, label_smoothing: Any) -> str | None:
    if isinstance(label_smoothing, Tensor):
        return "label_smoothing is a tensor"
    floats = (input,) if weight is None else (input, weight)
    if isinstance(target, Tensor) and target.is_floating_point():
        floats = (target, *floats)
        reason = None
    else:
        reason = _coverage.of_tensors((target,), _coverage.INDICES)
    return reason or _coverage.of_tensors(floats, _coverage.REALS) or _coverage.of_this_moment()


def pyext_bilinear(*args: Any, **kwargs: Any) -> Tensor:
    """F.bilinear, by pyext where it can be."""
    if torch.compiler.is_compiling():  # compilers look into this function
        return THEIR_BILINEAR(*args, **kwargs)
    calls = COUNTED["bilinear"]
    try:
        tensors = _bilinear_tensors(*args, **kwargs)
        reason = (
            _coverage.of_tensors(tensors, _coverage.REALS)
            or _coverage.of_this_moment()
            or ("a TorchFunctionMode" if torch._C._len_torch_function_stack() else None)
        )
        if reason is None:
            result = bilinear(*tensors)
            calls.pyext += 1
            return result
    except REFUSALS as error:
        reason = _refused(error)
    calls.left(reason)
    return THEIR_BILINEAR(*args, **kwargs)


def _bilinear_tensors(
    input1: Any, input2: Any, weight: Any, bias: Any = None
) -> tuple[Tensor, ...]:
    """The arguments by the names that torch has for them."""
    return (input1, input2, weight) if bias is None else (input1, input2, weight, bias)


def _refused(error: Exception) -> str:
    return f"{type(error).__name__} of pyext"


# ---- bodies for torch's functions: its parameters, and a call ----


def einsum_body(*args: Any) -> Tensor:
    return pyext_einsum(*args)


def cross_entropy_body(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: Any = -100,
    reduce: Any = None,
    reduction: Any = "mean",
    label_smoothing: Any = 0.0,
) -> Tensor:
    return pyext_cross_entropy(
        input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
    )
