"""The step of Adam and AdamW over many tensors, as an op. pyext.optim has the optimizers."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["FusedAdamResult", "fused_adam", "fused_adam_"]


class FusedAdamResult(NamedTuple):
    """New tensors in place of those that :func:`fused_adam_` writes."""

    params: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]


def fused_adam_(
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
) -> None:
    """In-place :func:`fused_adam`: writes the tensors that it would replace.

    Example:
        >>> import torch, pyext
        >>> p, g, m, v = (torch.full((2,), x) for x in (1.0, 0.5, 0.0, 0.0))
        >>> pyext.fused_adam_([p], [g], [m], [v], [], [torch.tensor(1.0)], lr=0.1)
        >>> p
        tensor([0.9000, 0.9000])
    """
    if not params:
        return  # the dispatcher finds a kernel by the tensors
    torch.ops.pyext.fused_adam_.default(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs,
        state_steps,
        lr=0.0 if isinstance(lr, Tensor) else lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=amsgrad,
        maximize=maximize,
        decoupled_weight_decay=decoupled_weight_decay,
        lr_tensor=lr if isinstance(lr, Tensor) else None,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )


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
) -> FusedAdamResult:
    """One step of Adam, or of AdamW with ``decoupled_weight_decay``, in one pass, without mutation.

    Lists are as long as ``params``, tensors of one place of equal shape, of any strides, on one
    device. Arithmetic is in float32, in float64 for such parameters. There is no derivative.

    Args:
        params: floating-point or complex tensors.
        grads: their gradients.
        exp_avgs: averages of the gradients.
        exp_avg_sqs: averages of their squares.
        max_exp_avg_sqs: the largest of these so far; empty without ``amsgrad``.
        state_steps: counts of steps, this one included; one element each.
        lr: learning rate, a float or a tensor of one element.
        beta1: decay rate of ``exp_avgs``.
        beta2: decay rate of ``exp_avg_sqs``.
        weight_decay: L2 penalty, or decoupled decay.
        eps: added to the denominator.
        amsgrad: whether ``max_exp_avg_sqs`` is used.
        maximize: whether to ascend.
        decoupled_weight_decay: whether weights decay beside the gradient, as in AdamW.
        grad_scale: gradients are divided by this tensor of one element.
        found_inf: nothing is changed where this tensor of one element is not 0.

    Returns:
        New tensors in place of ``params``, ``exp_avgs``, ``exp_avg_sqs`` and ``max_exp_avg_sqs``.

    Raises:
        ValueError: lists or tensors do not fit together; the message names the parameter.
        RuntimeError: a gradient is sparse, or a tensor requires a gradient that is recorded.

    Source:
        ``torch._fused_adam_`` and ``torch._fused_adamw_``; Kingma and Ba 2015, "Adam: A Method for
        Stochastic Optimization".

    Example:
        >>> import torch, pyext
        >>> p, g, m, v = (torch.full((2,), x) for x in (1.0, 0.5, 0.0, 0.0))
        >>> pyext.fused_adam([p], [g], [m], [v], [], [torch.tensor(1.0)], lr=0.1).params
        [tensor([0.9000, 0.9000])]
    """
    if not params:
        return FusedAdamResult([], [], [], [])
    results = torch.ops.pyext.fused_adam.default(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs,
        state_steps,
        lr=0.0 if isinstance(lr, Tensor) else lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=amsgrad,
        maximize=maximize,
        decoupled_weight_decay=decoupled_weight_decay,
        lr_tensor=lr if isinstance(lr, Tensor) else None,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    return FusedAdamResult(*results)


@torch.library.register_fake("pyext::fused_adam_")
def _(*args: Any, **kwargs: Any) -> None:
    return None


@torch.library.register_fake("pyext::fused_adam")
def _(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    *args: Any,
    **kwargs: Any,
) -> tuple[list[Tensor], ...]:
    written = (params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs)
    return tuple([torch.empty_like(x) for x in xs] for xs in written)
