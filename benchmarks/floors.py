"""What this machine can do at best: streaming bandwidth and the rate of matrix products.

Both are measured in the run whose results they bound, and again beside every case that is large
enough to be held against them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.timing import Function, interleaved

MIB = 1 << 20

STREAMS = 32 * MIB  # a case that moves more is held against the bandwidth beside it,
MULTIPLIES = 1e9  # and one of more operations against the rate of matrix products


@dataclass(frozen=True)
class Floors:
    """Bytes per second and floating-point operations per second, in float32."""

    bandwidth: float
    gemm_rate: float

    def seconds(self, moved_bytes: float, flops: float, overlap: bool = True) -> float:
        """The shortest time in which work of this size can be done.

        With `overlap`, the operations go on while memory streams.
        """
        times = moved_bytes / self.bandwidth, flops / self.gemm_rate
        return max(times) if overlap else sum(times)


def bandwidth_probe(device: str) -> tuple[Function, float]:
    """Streams memory, and the bytes that this moves, read and written.

    An addition in place on the CPU, where a copy would read the page that it overwrites; a copy on
    a GPU.
    """
    if device == "cpu":
        buffer = torch.zeros(256 * MIB // 4)
        return lambda: buffer.add_(1.0), 2 * 256 * MIB
    source, target = (torch.zeros(1024 * MIB // 4, device=device) for _ in range(2))
    return lambda: target.copy_(source), 2 * 1024 * MIB


def gemm_probe(device: str, dtype: torch.dtype = torch.float32) -> tuple[Function, float]:
    """A matrix product of 2048 x 2048 x 2048 (8192 on a GPU), and its operations."""
    size = 2048 if device == "cpu" else 8192
    a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    return lambda: torch.mm(a, b, out=out), 2.0 * size**3


def measure(device: str, seconds: float) -> Floors:
    """Both floors, interleaved."""
    stream, moved_bytes = bandwidth_probe(device)
    gemm, flops = gemm_probe(device)
    timings = interleaved({"stream": stream, "gemm": gemm}, device, seconds)
    return Floors(moved_bytes / timings["stream"].median, flops / timings["gemm"].median)
