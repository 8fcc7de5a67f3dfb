"""Cases of AdamW: one large tensor, many small ones, and what a training step does around it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pyext
from benchmarks.case import BEST, COMPILED, EAGER, FLOOR, OURS, Candidate, Case, Target

Shapes = Sequence[tuple[int, ...]]
Make = Callable[[list[Tensor]], torch.optim.Optimizer]
Step = Callable[[torch.optim.Optimizer, list[Tensor]], object]

BYTES = 28  # float32: read p, g, m, v; write p, m, v
CLIPPED_BYTES = 32  # and read g once more, for its norm
BFLOAT16_BYTES, INT8_BYTES = 20, 16  # float32 p and g, moments of 2 bytes and of 1

MLP: Shapes = [(64, 64), (64,), (10, 64), (10,)]  # for images of 8 x 8
SMALL: Shapes = [(1000,)] * 1000
TRANSFORMER: Shapes = [(64, 64)] * 200 + [(64,)] * 200
SHARE = 0.9

# Optimizers that other packages have for this device: package, module, class, arguments.
RIVALS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("deepspeed", "deepspeed.ops.adam", "DeepSpeedCPUAdam", {"adamw_mode": True}),
]
RIVALS_INT8: list[tuple[str, str, str, dict[str, Any]]] = [
    ("torchao", "torchao.optim", "AdamW8bit", {}),
    ("bitsandbytes", "bitsandbytes.optim", "AdamW8bit", {}),
]


def cases(device: str) -> list[Case]:
    """The sizes of the targets, and larger ones."""
    if device == "cuda":
        return [
            _case(
                "1 x 1,000,000,000, float32",
                [(10**9,)],
                floor=SHARE,
                slow=False,
                ours=partial(pyext.optim.AdamW, capturable=True),
            ),
            _case(
                "1,000 x (1,000), float32",
                SMALL,
                fused=1.0,
                slow=False,
                ours=partial(pyext.optim.AdamW, capturable=True),
            ),
        ]
    large: Shapes = [(50_000_000,)]
    return [
        _case(
            "1 x 50,000,000, float32",
            large,
            eager=6,
            fused=1.1,
            floor=SHARE,
            headline=True,
            extra=[*_rivals(RIVALS)],
            compiled=True,
        ),
        _case("100 x (512 x 512), float32", [(512, 512)] * 100, eager=2.8, fused=1.1),
        _case("1,000 x (1,000), float32", SMALL, eager=20, fused=5, quick=True, headline=True),
        _case("200 x (64 x 64) + 200 x (64), float32", TRANSFORMER, eager=15, fused=4),
        _case(
            "4 tensors of an MLP, float32",
            MLP,
            eager=6,
            fused=2.5,
            quick=True,
            headline=True,
            compiled=True,
        ),
        _case(
            "1 x 50,000,000, clip + step + zero_grad, float32",
            large,
            fused=1.35,
            ours=partial(pyext.optim.AdamW, max_grad_norm=1.0, zero_grad=True),
            around=_clip_and_zero,
            moved=CLIPPED_BYTES,
            slow=False,
            headline=True,
        ),
        _case(
            "1 x 50,000,000, moments in bfloat16",
            large,
            fused=1.4,
            ours=partial(pyext.optim.AdamW, moments="bfloat16"),
            moved=BFLOAT16_BYTES,
            slow=False,
        ),
        _case(
            "1 x 50,000,000, moments in 8 bits",
            large,
            fused=1.7,
            ours=partial(pyext.optim.AdamW, moments="int8"),
            moved=INT8_BYTES,
            slow=False,
            extra=[*_rivals(RIVALS_INT8)],
            headline=True,
        ),
        _case("1 x 100,000,000, float32", [(100_000_000,)], slow=False),
    ]


def _plain_step(optimizer: torch.optim.Optimizer, _: list[Tensor]) -> None:
    optimizer.step()


def _clip_and_zero(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> None:
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def _stepping(make: Make, step: Step = _plain_step) -> Callable[..., Sequence[Tensor]]:
    """Steps the parameters of an input set by an optimizer that was made for them."""
    made: dict[int, torch.optim.Optimizer] = {}

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        params = list(inputs[: len(inputs) // 2])
        optimizer = made.get(id(inputs[0]))
        if optimizer is None:
            optimizer = made[id(inputs[0])] = make(params)
        if params[0].grad is None:  # at first, and where the benchmark has looked at the memory
            for param, grad in zip(params, inputs[len(params) :], strict=True):
                param.grad = grad
        step(optimizer, params)
        return params

    return run


def _compiled(optimizer_of: Make) -> Callable[..., Sequence[Tensor]]:
    steps: dict[int, Callable[[], object]] = {}

    def step(optimizer: torch.optim.Optimizer, _: list[Tensor]) -> None:
        compiled = steps.get(id(optimizer))
        if compiled is None:
            compiled = steps[id(optimizer)] = torch.compile(optimizer.step)
        compiled()

    return _stepping(optimizer_of, step)


def _rivals(known: list[tuple[str, str, str, dict[str, Any]]]) -> list[Candidate]:
    found = []
    for package, module, name, options in known:
        try:
            make = partial(getattr(importlib.import_module(module), name), **options)
        except Exception as error:  # not installed, or not for this machine
            reason = f"{package} cannot be imported: {type(error).__name__}"
            found.append(Candidate(name, None, missing=reason))
        else:
            found.append(Candidate(f"{package} {name}", _stepping(make), keeps_inputs=False))
    return found


def _case(
    name: str,
    shapes: Shapes,
    *,
    eager: float | None = None,
    fused: float | None = None,
    floor: float | None = None,
    ours: Make = pyext.optim.AdamW,
    around: Step = _plain_step,
    moved: int = BYTES,
    slow: bool = True,
    compiled: bool = False,
    extra: Sequence[Candidate] = (),
    quick: bool = False,
    headline: bool = False,
) -> Case:
    # A benchmark on a GPU replays a graph of the step.
    def torchs(params: list[Tensor], **options: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, capturable=params[0].is_cuda, **options)

    def inputs(device: str) -> list[Tensor]:
        params = [torch.randn(shape, device=device) for shape in shapes]
        return [*params, *(torch.randn(shape, device=device) * 1e-2 for shape in shapes)]

    def candidate(who: str, run: Callable[..., Sequence[Tensor]], note: str = "") -> Candidate:
        return Candidate(who, run, keeps_inputs=False, note=note)

    fastest = partial(torchs, fused=True)
    candidates = [
        candidate(EAGER, _stepping(torchs, around), note="without flags; a loop on a CPU"),
        candidate(BEST, _stepping(fastest, around), note="fused=True"),
    ]
    if slow:
        foreach = partial(torchs, foreach=True)
        candidates.append(candidate("foreach", _stepping(foreach, around), note="foreach=True"))
    if compiled:
        candidates.append(candidate(COMPILED, _compiled(torch.optim.AdamW)))
    candidates += [*extra, candidate(OURS, _stepping(ours))]
    wanted = [(EAGER, eager), (BEST, fused), (FLOOR, floor)]
    return Case(
        op="fused_adam",
        name=name,
        inputs=inputs,
        candidates=candidates,
        moved_bytes=moved * sum(torch.Size(shape).numel() for shape in shapes),
        targets=[Target(versus, least) for versus, least in wanted if least is not None],
        quick=quick,
        headline=headline,
    )
