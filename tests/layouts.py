"""The same values in memory as users have them: transposed, sliced, padded, expanded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def contiguous(x: Tensor) -> Tensor:
    """Row major."""
    return x.contiguous()


def reversed_axes(x: Tensor) -> Tensor:
    """Column major: what `.T` gives. The second axis of (N, C, d1, ...) is strided."""
    order = list(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def channels_last(x: Tensor) -> Tensor:
    """The second axis innermost, as `memory_format=torch.channels_last` of any rank."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else x.contiguous()


def offset(x: Tensor) -> Tensor:
    """One element into its storage, so that no vector load is aligned."""
    storage = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return storage[1:].view(x.shape).copy_(x)


def padded(x: Tensor) -> Tensor:
    """A slice of rows that are 3 elements longer, what `logits[..., :C]` gives."""
    room = torch.full((*x.shape[:-1], x.shape[-1] + 3), 7, dtype=x.dtype, device=x.device)
    return room[..., : x.shape[-1]].copy_(x)


def every_other(x: Tensor) -> Tensor:
    """Every other element of each row: no axis has stride 1."""
    room = torch.full((*x.shape[:-1], 2 * x.shape[-1]), 7, dtype=x.dtype, device=x.device)
    return room[..., ::2].copy_(x)


def every_other_row(x: Tensor) -> Tensor:
    """Every other row of a storage that has more."""
    room = torch.full((2 * x.shape[0], *x.shape[1:]), 7, dtype=x.dtype, device=x.device)
    return room[1::2].copy_(x)


def expanded(x: Tensor) -> Tensor:
    """The first row everywhere, with stride 0."""
    return x[:1].expand(x.shape)


LAYOUTS: tuple[Callable[[Tensor], Tensor], ...] = (
    contiguous,
    reversed_axes,
    channels_last,
    offset,
    padded,
    every_other,
    every_other_row,
    expanded,
)


def laid_out(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """x in every layout that its shape allows, each once."""
    seen = set()
    for layout in LAYOUTS:
        y = layout(x)
        key = (y.stride(), y.storage_offset())
        if key not in seen:
            seen.add(key)
            yield layout.__name__, y
