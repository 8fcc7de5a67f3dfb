"""Fake kernels of einsum, and its batching rule for `vmap`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import opt_einsum
import torch
from torch import Tensor

from pyext import _C


def _result_like(
    equation: str, operands: Sequence[Tensor], layout: str
) -> tuple[list[Any], list[int]]:
    """The sizes of the result, and its dimensions from the slowest to the fastest."""
    inputs, output = _C.einsum_letters(equation, [x.dim() for x in operands])
    sizes: dict[str, Any] = {}
    for labels, x in zip(inputs, operands, strict=True):
        _check_device(equation, x, operands[0].device)
        for label, size in zip(labels, x.shape, strict=True):
            if label not in sizes or sizes[label] == 1:
                sizes[label] = size
            elif size != 1:
                torch._check(size == sizes[label], lambda: f"einsum(): sizes differ\n  {equation}")
    order = list(range(len(output)))
    if layout == "any":
        shared = [x for x in inputs[0] if all(x in labels for labels in inputs)]
        natural = "".join(shared) + "".join(inputs)
        order.sort(key=lambda d: natural.index(output[d]))
    return [sizes[label] for label in output], order


@torch.library.register_fake("pyext::einsum")
def _(
    equation: str,
    operands: Sequence[Tensor],
    *,
    alpha: complex = 1,
    layout: str = "contiguous",
    accumulate_dtype: torch.dtype | None = None,
    path: Sequence[int] | None = None,
) -> Tensor:
    sizes, order = _result_like(equation, operands, layout)
    dtype = result_dtype(equation, operands)
    result = operands[0].new_empty([sizes[d] for d in order], dtype=dtype)
    return result.permute([order.index(d) for d in range(len(order))])


def _check_device(equation: str, x: Tensor, device: torch.device) -> None:
    torch._check(
        x.device == device,
        lambda: (
            f"einsum(): expected tensors on one device, got {device} and {x.device}\n  {equation}"
        ),
    )


def result_dtype(equation: str, operands: Sequence[Tensor]) -> torch.dtype:
    if len(operands) == 1:
        dtype = operands[0].dtype
        (labels,), output = _C.einsum_letters(equation, [operands[0].dim()])
        summed = not set(labels) <= set(output)
        integral = not dtype.is_floating_point and not dtype.is_complex
        return torch.int64 if summed and integral else dtype
    total = operands[0]
    for operand in operands[1:]:
        # Of the shape that keeps the category of what came so far: a number, or a tensor.
        total = total.new_empty(
            (1,) * max(total.dim(), operand.dim()), dtype=torch.result_type(total, operand)
        )
    return total.dtype


@torch.library.register_fake("pyext::einsum.out")
def _(
    equation: str,
    operands: Sequence[Tensor],
    *,
    alpha: complex = 1,
    beta: complex = 0,
    accumulate_dtype: torch.dtype | None = None,
    path: Sequence[int] | None = None,
    out: Tensor,
) -> Tensor:
    sizes, _ = _result_like(equation, operands, "contiguous")
    _check_device(equation, out, operands[0].device)
    torch._check(
        list(out.shape) == sizes,
        lambda: f"einsum(): expected out of shape {sizes}, got {list(out.shape)}\n  {equation}",
    )
    return out


@torch.library.register_vmap("pyext::einsum")
def _(
    info: Any,
    in_dims: tuple[Any, ...],
    equation: str,
    operands: Sequence[Tensor],
    **options: Any,
) -> tuple[Tensor, int]:
    """The batch is one more label, of the operands that have it."""
    dims = in_dims[1]
    ranks = [x.dim() - (d is not None) for x, d in zip(operands, dims, strict=True)]
    inputs, output = _C.einsum_letters(equation, ranks)
    used = set("".join(inputs))
    batch = next(x for x in map(opt_einsum.get_symbol, range(len(used) + 1)) if x not in used)
    terms = [
        labels if d is None else labels[:d] + batch + labels[d:]
        for labels, d in zip(inputs, dims, strict=True)
    ]
    text = ",".join(terms) + "->" + batch + output
    return torch.ops.pyext.einsum.default(text, operands, **options), 0
