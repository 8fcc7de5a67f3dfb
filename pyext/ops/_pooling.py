"""What the poolings share: positions as one axis, and their rules for `vmap`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def of_positions(op: str, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Features x (N, D, *) and y with one axis of positions: views where strides allow them."""
    for name, features in (("x", x), ("y", y)):
        if features is not None and features.dim() < 3:
            raise ValueError(
                f"{op}: expected {name} of shape (N, D, *) with positions behind the channels, "
                f"got {list(features.shape)}"
            )
    if y is not None and max(x.dim(), y.dim()) > 3 and x.shape[2:] != y.shape[2:]:
        raise ValueError(
            f"{op}: expected y of shape (N, D2, *) with the positions {list(x.shape[2:])} of x, "
            f"got {list(y.shape)}"
        )
    return _flat(x), None if y is None else _flat(y)


def _flat(x: Tensor) -> Tensor:
    return x if x.dim() == 3 else x.flatten(2)


def check_features(op: str, x: Tensor) -> None:
    """What fake kernels check, lightly: the entries in C++ say more."""
    torch._check_value(
        x.dim() == 3, lambda: f"{op}: expected x of shape (N, D, S), got {list(x.shape)}"
    )


# ---- vmap: samples do not know of each other, so a batch of calls is a call of more samples ----


def folded(x: Any, dim: int | None, batch: int) -> Any:
    """(batch, N, ...) as (batch * N, ...); what the calls share is repeated."""
    if x is None:
        return None
    x = x.expand(batch, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1)


def unfolded(x: Tensor, batch: int) -> Tensor:
    """The inverse of `folded`."""
    return x.unflatten(0, (batch, x.shape[0] // batch))


def one_by_one(op: Any, batch: int, in_dims: Sequence[int | None], values: Sequence[Any]) -> Any:
    """The results of a call per example, stacked."""
    results = []
    for i in range(batch):
        example = [
            x if dim is None else x.select(dim, i) for x, dim in zip(values, in_dims, strict=True)
        ]
        result = op(*example)
        results.append(result if isinstance(result, tuple) else (result,))
    return tuple(torch.stack(x) for x in zip(*results, strict=True))
