"""How much memory a function takes at its peak, beyond what there was before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.timing import Function


def peak_extra_bytes(function: Function, sets: Sequence[Sequence[Tensor]], device: str) -> int:
    """The peak over one call of `function`, which must have been called before.

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
        function()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        function()
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
