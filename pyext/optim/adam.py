"""Adam and AdamW, one pass over all parameters per step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from pyext.optim._fused import AdamTelemetry, Fused, Master, Moments

__all__ = ["Adam", "AdamTelemetry", "AdamW"]

_ARGUMENTS = """
    One pass over memory updates all parameters and their moments, whatever their number; the
    numbers are torch's to rounding, and state dicts go both ways. Arguments up to
    ``decoupled_weight_decay`` are those of :class:`torch.optim.{name}`; ``foreach`` and ``fused``
    choose an implementation there and nothing here.

    Args:
        params: parameters, named parameters, or dicts of groups with options of their own.
        lr: learning rate, a float or a tensor of one element.
        betas: decay rates of the averages of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: {decay}.
        amsgrad: whether the largest second moment so far is used (Reddi et al. 2018).
        foreach: accepted, without effect.
        maximize: whether to ascend.
        capturable: whether step counts live on the GPU, for CUDA graphs.
        differentiable: whether derivatives go through the step; it is torch's own then, without
            what is added here.
        fused: accepted, without effect.
        moments: how moments are stored, per group: ``"float32"``, ``"bfloat16"`` (rounded at
            random) or ``"int8"`` (blocks of 256 with a scale each); default: the parameter's dtype.
        master: how a float16 or bfloat16 parameter keeps small updates, per group: ``"float32"``
            keeps a copy, ``"split"`` the 16 bits below a bfloat16, ``"kahan"`` what rounding lost;
            ``"stochastic"`` rounds a bfloat16 at random. Other parameters need none.
        max_grad_norm: gradients are scaled down to this 2-norm over all parameters, as
            :func:`torch.nn.utils.clip_grad_norm_` does; ``.grad`` is left as it is.
        zero_grad: whether the step writes zeros to the gradients behind it.
        ema_decay: decay of a moving average of the parameters, per group.
        skip_nonfinite: whether a step with a NaN or infinite gradient changes nothing, and is
            counted in ``skipped_steps``.
        telemetry: whether ``last_telemetry`` is measured.

    Raises:
        ValueError: a hyperparameter is out of its range, unknown, or does not fit a parameter.

    Source:
        {source}

    Example:
        >>> import torch, pyext
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = pyext.optim.{name}(model.parameters(), lr=1e-2, max_grad_norm=1.0)
        >>> model(torch.ones(3, 2)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.state[model.weight]["step"]
        tensor(1.)
"""


class Adam(Fused, torch.optim.Adam):  # noqa: D101 (below)
    __doc__ = "Adam, a drop-in for :class:`torch.optim.Adam`." + _ARGUMENTS.format(
        name="Adam",
        decay="L2 penalty, or decoupled decay with ``decoupled_weight_decay``",
        source='Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization".',
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        moments: Moments | None = None,
        master: Master | None = None,
        max_grad_norm: float | None = None,
        zero_grad: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        telemetry: bool = False,
    ) -> None:
        self._add(moments, master, ema_decay, max_grad_norm, zero_grad, skip_nonfinite, telemetry)
        torch.optim.Adam.__init__(
            self,
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class AdamW(Fused, torch.optim.AdamW):  # noqa: D101 (below)
    __doc__ = "AdamW, a drop-in for :class:`torch.optim.AdamW`." + _ARGUMENTS.format(
        name="AdamW",
        decay="decoupled weight decay",
        source='Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".',
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        moments: Moments | None = None,
        master: Master | None = None,
        max_grad_norm: float | None = None,
        zero_grad: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        telemetry: bool = False,
    ) -> None:
        self._add(moments, master, ema_decay, max_grad_norm, zero_grad, skip_nonfinite, telemetry)
        torch.optim.AdamW.__init__(
            self,
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
