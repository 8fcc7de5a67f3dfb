"""How much memory a call takes at its peak, beyond what there was before it, and how long."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.timing import Function


def peak_extra_bytes(
    function: Function, sets: Sequence[Sequence[Tensor]], device: str
) -> tuple[int, float]:
    """The peak over one call of `function`, which must have been called before, and its seconds.

    Gradients that earlier calls left at the leaves in `sets` are freed before.

    On the CPU, from torch's profiler: every tensor is counted when it is allocated and freed, so
    the number is exact and the same every time; memory that is not a tensor's is not seen.
    """
    for inputs in sets:
        for tensor in inputs:
            tensor.grad = None
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return int(torch.cuda.max_memory_allocated() - before), seconds
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        start = time.perf_counter()
        function()
        seconds = time.perf_counter() - start
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak, seconds
