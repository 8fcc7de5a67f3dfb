"""fused_adam from its formula, one tensor at a time, in whatever precision it is given."""

from __future__ import annotations

from torch import Tensor


def fused_adam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    *,
    lr: float | Tensor,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> tuple[list[Tensor], ...]:
    if found_inf is not None and found_inf.item():
        return params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs
    lr = float(lr)
    new: tuple[list[Tensor], ...] = ([], [], [], [])
    for i, (p, g, m, v, step) in enumerate(
        zip(params, grads, exp_avgs, exp_avg_sqs, state_steps, strict=True)
    ):
        t = step.item()
        if grad_scale is not None:
            g = g / grad_scale.item()
        if maximize:
            g = -g
        decay = lr * weight_decay * p if decoupled_weight_decay else 0
        if not decoupled_weight_decay and weight_decay:
            g = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        root = v
        if amsgrad:
            root = v.maximum(max_exp_avg_sqs[i])
            new[3].append(root)
        corrected = (root / (1 - beta2**t)).sqrt() + eps
        new[0].append(p - decay - lr * (m / (1 - beta1**t)) / corrected)
        new[1].append(m)
        new[2].append(v)
    return new
