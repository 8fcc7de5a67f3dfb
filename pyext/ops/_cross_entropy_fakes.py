"""Fake kernels of cross_entropy and its backward: shapes and dtypes alone."""

from __future__ import annotations

import torch
from torch import Tensor

from pyext.ops._arguments import by_name


def _row_shape(input: Tensor) -> list[int]:
    sizes = list(input.shape)
    del sizes[1 if input.dim() > 1 else 0]
    return sizes


def _arithmetic_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


@torch.library.register_fake("pyext::cross_entropy")
def _(input: Tensor, target: Tensor, *values: object, **keywords: object) -> tuple[Tensor, ...]:
    op = torch.ops.pyext.cross_entropy.default
    options = by_name(op, (input, target, *values), keywords)
    dtype = _arithmetic_dtype(input)
    rows = _row_shape(input)
    stats_rows = rows if options["return_stats"] else [0]
    return (
        input.new_empty(
            rows if options["reduction"] == "none" else [], dtype=options["out_dtype"] or dtype
        ),
        input.new_empty([*rows, 2], dtype=dtype),
        input.new_empty(stats_rows, dtype=dtype),
        input.new_empty(stats_rows, dtype=dtype),
        input.new_empty(stats_rows, dtype=dtype),
        input.new_empty(stats_rows, dtype=torch.int64),
    )


@torch.library.register_fake("pyext::cross_entropy_backward")
def _(
    grad_loss: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    input: Tensor,
    *values: object,
    **keywords: object,
) -> Tensor:
    return torch.empty_like(input)
