"""Counts the bytes that a call allocates and what autograd keeps between forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """The largest sum of tensor memory alive at once that was allocated during the call."""
    call()  # what is made once is made
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    allocations = [event for event in events if event.name() == "[memory]"]
    assert allocations, "the profiler reports no allocation"
    alive = peak = 0
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def contraction_scratch(operands: list[Tensor], results: int) -> int:
    """The memory that a contraction of `operands` to so many `results` may need beside them.

    On a CPU it needs tiles, which budgets count. On CUDA all may be laid out anew for cuBLAS, in
    float32 where they are of 16 bits; and of three operands the product of two is formed, no more
    than 64 MiB of it at once.
    """
    if operands[0].device.type != "cuda":
        return 0
    numels = sorted([*(x.numel() for x in operands), results])
    item = max(4, operands[0].element_size())
    formed = item * numels[-1] * numels[-2] if len(operands) > 2 else 0
    return item * sum(numels) + min(formed, 64 << 20)


def saved_tensors(call: Callable[[], Any]) -> list[Tensor]:
    """What the graph of the call saves for its backward."""
    saved = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        call()
    return saved


def storage_bytes(tensors: list[Tensor], without: list[Tensor]) -> int:
    """The memory of tensors, each storage once, but for storages that `without` holds too."""
    known = {x.untyped_storage().data_ptr() for x in without}
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(size for at, size in storages.items() if at not in known)
