"""Cases of the label-smoothing loss, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import pyext
from benchmarks.case import (
    BEST,
    COMPILED,
    EAGER,
    FLOOR,
    OURS,
    OURS_COMPILED,
    Candidate,
    Case,
    Target,
)

EPS = 0.1
LAM = 0.3

# Rows, classes: times as fast as eager, as torch.compile; the share of the streaming bandwidth.
TARGETS: dict[tuple[int, int], tuple[float, float, float | None]] = {
    (256, 10): (3, 3, None),
    (128, 1_000): (15, 4, None),
    (8_192, 1_000): (10, 2.5, 0.5),
    (2_048, 32_000): (6, 2.5, 0.5),
    (512, 128_256): (6, 2.5, 0.5),
}
CUDA_SHARE = 0.8  # of the copy bandwidth, in bfloat16

Loss = Callable[..., Tensor]


def cases(device: str) -> list[Case]:
    """The table of sizes in two dtypes, then the variants of the loss at one size."""
    found = [_smoothed(n, c, dtype, device) for dtype in DTYPES for n, c in TARGETS]
    return [*found, _hard(device), _axis(device), _others(device), _mixup(device)]


DTYPES = (torch.float32, torch.bfloat16)


def _step(loss: Loss) -> Callable[..., tuple[Tensor, Tensor]]:
    """What a training step runs, from logits that are a leaf."""

    def step(logits: Tensor, *targets: Tensor) -> tuple[Tensor, Tensor]:
        logits.grad = None
        value = loss(logits, *targets)
        value.backward()
        assert logits.grad is not None
        return value, logits.grad

    return step


def _compiled(loss: Loss) -> Loss:
    return torch.compile(loss, fullgraph=True, dynamic=False)


def _native(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x, y, label_smoothing=EPS)


def _by_hand(x: Tensor, y: Tensor) -> Tensor:
    """The formulation of timm and others, which torch's own ops do faster."""
    log_probabilities = F.log_softmax(x, dim=1)
    hard = -log_probabilities.gather(1, y[:, None]).squeeze(1)
    return ((1 - EPS) * hard - EPS * log_probabilities.mean(1)).mean()


def _ours(x: Tensor, y: Tensor) -> Tensor:
    return pyext.cross_entropy(x, y, label_smoothing=EPS)


def _case(
    name: str,
    device: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    native: Loss,
    ours: Loss,
    best: Candidate,
    *,
    index_tensors: int = 1,
    rivals: Sequence[Candidate] = (),
    targets: Sequence[Target] = (),
    quick: bool = False,
    headline: bool = True,
) -> Case:
    """A case with the candidates that every case has."""

    def inputs(where: str) -> list[Tensor]:
        rows = (shape[0], *shape[2:])
        logits = torch.randn(shape, dtype=torch.float32).mul_(3).to(where, dtype)
        classes = [torch.randint(shape[1], rows).to(where) for _ in range(index_tensors)]
        return [logits.requires_grad_(), *classes]

    # On the CPU the gradient is formed while the row is in the cache: read once, write once. On a
    # GPU the backward pass reads the logits again.
    passes = 2 if device == "cpu" else 3
    logits = torch.Size(shape).numel()
    return Case(
        op="cross_entropy",
        name=name,
        inputs=inputs,
        candidates=[
            Candidate(EAGER, _step(native)),
            best,
            Candidate(COMPILED, _step(_compiled(native))),
            *rivals,
            Candidate(OURS, _step(ours)),
            *([Candidate(OURS_COMPILED, _step(_compiled(ours)))] if quick else []),
        ],
        moved_bytes=passes * logits * dtype.itemsize,
        targets=targets,
        quick=quick,
        headline=headline,
        # torch's loss itself is a bfloat16, and its gradient is rounded several times.
        tolerance=1e-4 if dtype == torch.float32 else 2e-2,
    )


def _smoothed(rows: int, classes: int, dtype: torch.dtype, device: str) -> Case:
    eager, compiled, share = TARGETS[rows, classes]
    targets = [Target(EAGER, eager), Target(COMPILED, compiled)]
    if device == "cpu" and share:
        targets.append(Target(FLOOR, share))
    if device == "cuda":
        large = share is not None and dtype == torch.bfloat16
        targets = [Target(FLOOR, CUDA_SHARE)] if large else []
    return _case(
        f"{rows} x {classes}, {_short(dtype)}",
        device,
        (rows, classes),
        dtype,
        _native,
        _ours,
        Candidate(BEST, _step(_by_hand), note="log_softmax, gather, mean"),
        rivals=_rivals(device),
        targets=targets,
        quick=rows * classes < 10_000_000 and dtype == torch.float32,
        headline=share is not None or dtype == torch.float32,
    )


def _hard(device: str) -> Case:
    return _case(
        "8192 x 1000, hard labels, float32",
        device,
        (8192, 1000),
        torch.float32,
        lambda x, y: F.cross_entropy(x, y),
        lambda x, y: pyext.cross_entropy(x, y),
        NO_BEST,
    )


def _axis(device: str) -> Case:
    return _case(
        "8 x 21 x 256 x 256, float32",
        device,
        (8, 21, 256, 256),
        torch.float32,
        _native,
        _ours,
        Candidate(BEST, _step(_by_hand), note="log_softmax, gather, mean"),
    )


def _others(device: str) -> Case:
    def recipe(x: Tensor, y: Tensor) -> Tensor:
        masses = torch.full_like(x, EPS / (x.size(1) - 1)).scatter_(1, y[:, None], 1 - EPS)
        return -(masses * F.log_softmax(x, dim=1)).sum(1).mean()

    return _case(
        "8192 x 1000, smoothing over the others, float32",
        device,
        (8192, 1000),
        torch.float32,
        recipe,
        lambda x, y: pyext.cross_entropy(x, y, label_smoothing=EPS, smoothing="others"),
        NO_BEST,
    )


def _mixup(device: str) -> Case:
    def two_calls(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return LAM * _native(x, a) + (1 - LAM) * _native(x, b)

    return _case(
        "8192 x 1000, mixup, float32",
        device,
        (8192, 1000),
        torch.float32,
        two_calls,
        lambda x, a, b: pyext.mixup_cross_entropy(x, a, b, LAM, label_smoothing=EPS),
        NO_BEST,
        index_tensors=2,
    )


NO_BEST = Candidate(BEST, None, missing="torch has no faster way than the eager one")


def _rivals(device: str) -> list[Candidate]:
    """Other packages' losses with label smoothing; for the CPU there is none."""
    if device == "cpu":
        return []
    return [
        _rival("Liger", _liger, keeps_inputs=False),
        _rival("apex", _apex),
        _rival("flash-attn", _flash),
    ]


def _rival(name: str, make: Callable[[], Loss], keeps_inputs: bool = True) -> Candidate:
    try:
        return Candidate(name, _step(make()), keeps_inputs=keeps_inputs)
    except ImportError:
        return Candidate(name, None, missing="not installed")


def _liger() -> Loss:
    from liger_kernel.transformers import LigerCrossEntropyLoss

    return LigerCrossEntropyLoss(label_smoothing=EPS)


def _apex() -> Loss:
    from apex.contrib.xentropy import SoftmaxCrossEntropyLoss

    # -100 is padding_idx, whose rows do not count.
    return lambda x, y: SoftmaxCrossEntropyLoss.apply(x, y, EPS, -100, False).mean()


def _flash() -> Loss:
    from flash_attn.losses.cross_entropy import CrossEntropyLoss

    return CrossEntropyLoss(label_smoothing=EPS)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
