"""What Adam and AdamW add to torch's optimizers of the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from pyext import _C
from pyext.optim._adam_state import (
    check_group,
    check_loaded,
    complete_state,
    keeping_policy,
    restore_dtypes,
)

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


class Fused(torch.optim.Optimizer):
    """A base class beside torch's own; `_add` goes before torch's constructor."""

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
