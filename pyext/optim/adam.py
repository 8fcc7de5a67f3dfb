"""Adam and AdamW, one pass over all parameters per step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, StateDict

from pyext import _C
from pyext.optim._adam_state import (
    check_group,
    check_loaded,
    complete_state,
    keeping_policy,
    restore_dtypes,
)

__all__ = ["Adam", "AdamTelemetry", "AdamW"]

Moments = Literal["float32", "bfloat16", "int8"]
Master = Literal["float32", "split", "kahan", "stochastic"]


class AdamTelemetry(NamedTuple):
    """What a step did, over all parameters.

    Attributes:
        grad_norm: 2-norm of the gradients, unscaled and clipped.
        update_norm: 2-norm of what was subtracted from the parameters.
        param_norm: 2-norm of the parameters after the step.
        lost_updates: how many updates were not 0 and yet left their parameter where it was.
    """

    grad_norm: float
    update_norm: float
    param_norm: float
    lost_updates: int


class _Fused(torch.optim.Optimizer):
    """What Adam and AdamW add to torch's classes of the same names."""

    _stepper: _C.AdamStepper
    _options: dict[str, Any]  # what is not per group
    _group_options: dict[str, Any]

    def _add(
        self,
        moments: Moments | None,
        master: Master | None,
        ema_decay: float | None,
        max_grad_norm: float | None,
        zero_grad: bool,
        skip_nonfinite: bool,
        telemetry: bool,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"Invalid max_grad_norm: {max_grad_norm}, expected a number above 0")
        # Before torch's constructor, which adds the groups.
        self._group_options = {"moments": moments, "master": master, "ema_decay": ema_decay}
        self._options = {
            "max_grad_norm": max_grad_norm,
            "zero_grad": zero_grad,
            "skip_nonfinite": skip_nonfinite,
            "telemetry": telemetry,
            # Not drawn: a program's own random numbers stay what they were.
            "seed": torch.initial_seed() % 2**64,
        }

    @classmethod
    def adopt(cls, optimizer: torch.optim.Optimizer) -> None:
        """Makes an optimizer of torch's class of the same name one of this class, with no extras.

        It stays the object that it is, with its groups, states and hooks.
        """
        optimizer.__class__ = cls
        assert isinstance(optimizer, cls)
        optimizer._add(None, None, None, None, False, False, False)
        optimizer.__setstate__({})

    def _start(self) -> None:
        self._stepper = _C.AdamStepper(type(self).__name__, **self._options)
        # That GradScaler leaves unscaling to the step.
        self._step_supports_amp_scaling = not self.defaults["differentiable"]

    def __getstate__(self) -> dict[str, Any]:
        added = {"_options": self._options, "_group_options": self._group_options}
        return {**super().__getstate__(), **added}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self._group_options.items():
                group.setdefault(name, value)
        if not hasattr(self, "_stepper"):
            self._start()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, with options of its own where they are given."""
        for name, value in self._group_options.items():
            param_group.setdefault(name, value)
        super().add_param_group(param_group)
        if not hasattr(self, "_stepper"):  # the first group, within torch's constructor
            self._start()
        try:
            check_group(type(self).__name__, len(self.param_groups) - 1, param_group)
        except Exception:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Loads a state dict of this class or of torch's class of the same name.

        How moments and parameters are stored stays as this optimizer was told; floating-point
        moments are converted.

        Raises:
            ValueError: the states do not fit the parameters, or are coded in 8 bits where this
                optimizer's are not, or the other way round. Nothing is changed then.
        """
        loaded: StateDict = {}

        # As hooks: behind the user's own, which may replace the state dict, and before those after.
        def check(_: torch.optim.Optimizer, given: StateDict) -> StateDict:
            check_loaded(type(self).__name__, self.param_groups, given)
            loaded.update(keeping_policy(self.param_groups, given))
            return loaded

        def restore(_: torch.optim.Optimizer) -> None:
            restore_dtypes(self.param_groups, self.state, loaded)

        before = self.register_load_state_dict_pre_hook(check)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    @torch.compiler.disable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step with the gradients that are there.

        Args:
            closure: computes the loss anew; called with gradients enabled, and its result returned.

        Raises:
            RuntimeError: a gradient is sparse.
            ValueError: a gradient does not fit its parameter. As after any error, parameters and
                states are what they were.
        """
        if self.defaults["differentiable"]:
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, found = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        while missing := self._stepper.step(self.param_groups, self.state, scale, found):
            for group, index in missing:
                options = self.param_groups[group]
                param = options["params"][index]
                complete_state(self.state[param], options, param)
        return loss

    @property
    def last_grad_norm(self) -> Tensor | None:
        """2-norm of all gradients at the last step, before clipping; with `max_grad_norm`."""
        return self._stepper.grad_norm

    @property
    def last_telemetry(self) -> AdamTelemetry | None:
        """What the last step did; with `telemetry`. On a GPU, waits for the step."""
        sums = self._stepper.telemetry
        return None if sums is None else AdamTelemetry(*sums)

    @property
    def skipped_steps(self) -> int:
        """How many steps had a non-finite gradient and changed nothing; with `skip_nonfinite`."""
        return self._stepper.skipped_steps

    def _averaged(self) -> Iterable[tuple[Tensor, Tensor]]:
        for group in self.param_groups:
            for param in group["params"]:
                average = self.state[param].get("ema") if param in self.state else None
                # One that was never stepped is its own average.
                yield param, param.detach() if average is None else average

    def ema_parameters(self) -> list[Tensor]:
        """The moving averages of all parameters, in the order of the groups; with `ema_decay`."""
        return [average for _, average in self._averaged()]

    @torch.no_grad()
    def swap_ema(self) -> None:
        """Exchanges parameters and their moving averages: once to evaluate, again to train."""
        for param, average in self._averaged():
            if average.data_ptr() == param.data_ptr():
                continue
            value = param.detach().clone()
            param.copy_(average)
            # An average that is wider than its parameter comes back with all of its digits.
            wide = self.state[param].pop("wide_ema", None)
            if wide is not None and torch.equal(value, wide.to(value.dtype)):
                average.copy_(wide)
                continue
            if average.dtype != param.dtype:
                self.state[param]["wide_ema"] = average.clone()
            average.copy_(value)


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


class Adam(_Fused, torch.optim.Adam):  # noqa: D101 (below)
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


class AdamW(_Fused, torch.optim.AdamW):  # noqa: D101 (below)
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
