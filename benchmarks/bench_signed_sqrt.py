"""Cases of the signed square root: forward, into a buffer, in place, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import pyext
from benchmarks.case import BEST, COMPILED, EAGER, OURS, OURS_COMPILED, Candidate, Case
from benchmarks.passes import compiled, forward, forward_backward

EPS = 1e-5

POOLED = (32, 512 * 512)  # what bilinear pooling of 512 channels hands on, for a batch of 32
SMALL = (1000,)


def cases(_device: str) -> list[Case]:
    """A size that shows the overhead of a call, and one that streams."""
    return [
        _forward("1000, float32", SMALL, torch.float32, quick=True),
        _forward("32 x 262144, float32", POOLED, torch.float32, quick=True),
        _forward("32 x 262144, bfloat16", POOLED, torch.bfloat16),
        _into_buffer(),
        _in_place(),
        _forward_backward("1000, forward + backward, float32", SMALL),
        _forward_backward("32 x 262144, forward + backward, float32", POOLED),
    ]


def _native(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.sqrt(x.abs() + EPS)


def _one_temporary(x: Tensor) -> Tensor:
    return x.abs().add_(EPS).sqrt_().mul_(x.sign())


def _ours(x: Tensor) -> Tensor:
    return pyext.signed_sqrt(x, EPS)


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape).to(device, dtype)


def _forward(name: str, shape: tuple[int, ...], dtype: torch.dtype, quick: bool = False) -> Case:
    return Case(
        op="signed_sqrt",
        name=name,
        inputs=lambda device: [_random(shape, dtype, device)],
        candidates=[
            Candidate(EAGER, forward(_native)),
            Candidate(BEST, forward(_one_temporary), note="in place on the temporaries"),
            Candidate(COMPILED, forward(compiled(_native))),
            Candidate(OURS, forward(_ours)),
            Candidate(OURS_COMPILED, forward(compiled(_ours))),
        ],
        moved_bytes=2 * torch.Size(shape).numel() * dtype.itemsize,
        quick=quick,
        headline=dtype == torch.float32,
        tolerance=1e-5 if dtype == torch.float32 else 1e-2,
    )


def _into_buffer() -> Case:
    def native(x: Tensor, out: Tensor, sign: Tensor) -> Tensor:
        torch.sign(x, out=sign)
        return torch.abs(x, out=out).add_(EPS).sqrt_().mul_(sign)

    def ours(x: Tensor, out: Tensor, _: Tensor) -> Tensor:
        return pyext.signed_sqrt(x, EPS, out=out)

    # Each has buffers of its own.
    def candidate(name: str, function: Callable[..., Tensor], note: str = "") -> Candidate:
        return Candidate(name, forward(function), keeps_inputs=False, note=note)

    def copied(x: Tensor, out: Tensor, _: Tensor) -> Tensor:
        return out.copy_(_native(x))

    return Case(
        op="signed_sqrt",
        name="32 x 262144, out=, float32",
        inputs=lambda device: [_random(POOLED, torch.float32, device) for _ in range(3)],
        candidates=[
            candidate(EAGER, copied),
            candidate(BEST, native, note="out= twice, then in place"),
            candidate(COMPILED, compiled(copied)),
            candidate(OURS, ours),
        ],
        moved_bytes=2 * torch.Size(POOLED).numel() * 4,
        tolerance=1e-5,
    )


def _in_place() -> Case:
    def native(x: Tensor) -> Tensor:
        sign = x.sign()
        return x.abs_().add_(EPS).sqrt_().mul_(sign)

    # Each has a tensor of its own, whose values tend to 1 and -1 from call to call.
    def candidate(name: str, function: Callable[[Tensor], Tensor], note: str = "") -> Candidate:
        return Candidate(name, forward(function), keeps_inputs=False, note=note)

    return Case(
        op="signed_sqrt",
        name="32 x 262144, in place, float32",
        inputs=lambda device: [_random(POOLED, torch.float32, device)],
        candidates=[
            candidate(EAGER, lambda x: x.copy_(_native(x))),
            candidate(BEST, native, note="in place, with one temporary for the sign"),
            candidate(COMPILED, compiled(lambda x: x.copy_(_native(x)))),
            candidate(OURS, lambda x: pyext.signed_sqrt_(x, EPS)),
        ],
        moved_bytes=2 * torch.Size(POOLED).numel() * 4,
        tolerance=1e-5,
    )


def _forward_backward(name: str, shape: tuple[int, ...]) -> Case:
    def inputs(device: str) -> list[Tensor]:
        x, cotangent = (_random(shape, torch.float32, device) for _ in range(2))
        return [x.requires_grad_(), cotangent]

    return Case(
        op="signed_sqrt",
        name=name,
        inputs=inputs,
        candidates=[
            Candidate(EAGER, forward_backward(_native)),
            Candidate(COMPILED, forward_backward(compiled(_native))),
            Candidate(OURS, forward_backward(_ours)),
            Candidate(OURS_COMPILED, forward_backward(compiled(_ours))),
        ],
        # Forward reads x and writes y; backward reads y and its gradient and writes that of x.
        moved_bytes=5 * torch.Size(shape).numel() * 4,
        headline=True,
        tolerance=1e-5,
    )
