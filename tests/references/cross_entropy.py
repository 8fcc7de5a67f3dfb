"""Cross-entropy by its definition: a matrix of masses t, and the loss sum_c t_c (lse - z_c).

Slow, with every row and class written out, in differentiable torch ops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def smoothed(q: Tensor, e: Tensor, smoothing: str | Tensor, z: Tensor, *, masked: bool) -> Tensor:
    """Masses over the classes (last axis) from target distributions q, as the page has them.

    With `masked`, classes whose logit is -inf take no part.
    """
    counts = (z > -torch.inf).double() if masked else torch.ones_like(z)
    n = counts.sum(-1, keepdim=True)
    if isinstance(smoothing, Tensor):
        share = smoothing * counts
        if masked:
            share = share / share.sum(-1, keepdim=True)
        t = (1 - e) * q + e * share
    elif smoothing == "uniform":  # on = 1 - e + e/C, off = e/C
        t = (1 - e) * q + e / n * counts
    elif smoothing == "others":  # on = 1 - e, off = e/(C - 1)
        t = (1 - e) * q + e / (n - 1) * (counts - q)
    elif smoothing == "lsr":  # on = 1 - e + e/(C - 1), off = e/(C - 1)
        t = (1 - e) * q + e / (n - 1) * counts
    return torch.where(e == 0, q, t)


def log_softmax(z: Tensor) -> tuple[Tensor, Tensor]:
    """log sum exp z and z less that; NaN with a logit of inf (inf - inf), as in torch."""
    largest = z.max(-1, keepdim=True).values.detach()
    shift = torch.where(largest == -torch.inf, 0, largest)
    lse = torch.logsumexp(z - shift, -1, keepdim=True)
    return (lse + shift).squeeze(-1), z - shift - lse


def taken(mass: Tensor, value: Tensor) -> Tensor:
    """mass * value, where a mass of 0 takes nothing from an infinite value, or from a NaN."""
    return torch.where(mass == 0, 0, mass) * torch.where(mass == 0, 0, value)


def per_row(value: float | Tensor, rows: Tensor) -> Tensor:
    """A number, one value per sample (N), or one per row, with a class axis."""
    value = torch.as_tensor(value, dtype=torch.float64, device=rows.device)
    while 0 < value.dim() < rows.dim() - 1:
        value = value.unsqueeze(-1)
    return value.unsqueeze(-1)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float | Tensor = 0.0,
    smoothing: str | Tensor = "uniform",
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    masked: bool = False,
    return_stats: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Any:
    axis = 1 if input.dim() > 1 else 0
    z = input.movedim(axis, -1) * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    w = torch.ones_like(z) if weight is None else weight.expand_as(z)

    if target.is_floating_point():
        q = target.movedim(axis, -1)
        kept = torch.ones_like(z[..., 0], dtype=torch.bool)
        denominator = torch.tensor(float(kept.numel()))
    else:
        kept = target != ignore_index
        y = torch.where(kept, target, 0).long()
        q = torch.nn.functional.one_hot(y, z.shape[-1]).to(z.dtype)
        denominator = torch.where(kept, (w * q).sum(-1), 0).sum()

    t = w * smoothed(q, per_row(label_smoothing, z), smoothing, z, masked=masked)
    t = torch.where(kept.unsqueeze(-1), t, 0)
    lse, log_p = log_softmax(torch.where(kept.unsqueeze(-1), z, 0))  # else 0 * nan in gradients
    loss = -taken(t, log_p).sum(-1)
    if z_loss:
        loss = loss + taken(z_loss * kept.double(), lse**2)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / denominator.to(loss.device)
    if not return_stats:
        return loss
    lse, log_p = log_softmax(z)
    p = log_p.exp()
    entropy = -taken(p, log_p).sum(-1)
    expected = taken(q, log_p).sum(-1)
    return loss, lse, entropy, torch.where(kept, expected, 0).detach(), z.argmax(-1)


def mixup_cross_entropy(
    input: Tensor,
    target_a: Tensor,
    target_b: Tensor,
    lam: float | Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    return_stats: bool = False,
    **options: Any,
) -> Any:
    """lam CE(a) + (1 - lam) CE(b), with a mean over each target's own rows and weights."""
    losses = []
    for target, share in ((target_a, lam), (target_b, 1 - lam)):
        rows = cross_entropy(input, target, weight, reduction="none", **options)
        share = per_row(share, rows.unsqueeze(-1)).squeeze(-1)
        loss = torch.where(share == 0, 0, share * rows)
        if reduction != "none":
            loss = loss.sum()
        if reduction == "mean":
            kept = target != options.get("ignore_index", -100)
            y = torch.where(kept, target, 0).long()
            w = torch.ones_like(rows) if weight is None else weight[y]
            loss = loss / torch.where(kept, w, 0).sum()
        losses.append(loss)
    if not return_stats:
        return losses[0] + losses[1]
    stats = [
        cross_entropy(input, target, weight, return_stats=True, **options)
        for target in (target_a, target_b)
    ]
    share = per_row(lam, stats[0][3].unsqueeze(-1)).squeeze(-1)
    expected = share * stats[0][3] + (1 - share) * stats[1][3]
    return losses[0] + losses[1], stats[0][1], stats[0][2], expected, stats[0][4]
