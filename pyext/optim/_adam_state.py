"""The states of Adam's parameters: what each group keeps, how it is stored, what may be loaded."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

MOMENTS = (None, "float32", "bfloat16", "int8")
MASTERS = (None, "float32", "split", "kahan", "stochastic")
LOW_PRECISION = (torch.bfloat16, torch.float16)
BFLOAT16_ONLY = ("split", "stochastic")
CODE_BLOCK = 256  # elements that share a scale: kCodeBlock in csrc/low_precision.h
KEYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def check_group(optimizer: str, index: int, group: dict[str, Any]) -> None:
    """Raises ValueError where the options that torch does not have do not fit."""
    added = [name for name in ("moments", "master", "ema_decay") if group[name] is not None]
    if group["differentiable"] and added:
        raise ValueError(
            f"{optimizer}: group {index}: differentiable=True takes torch's own step, which has no "
            f"{', '.join(added)}"
        )
    # torch checks what its constructor is given, and no group of its own options.
    beta1, beta2 = group["betas"]
    for what, value, fits in (
        ("learning rate", group["lr"], group["lr"] >= 0),
        ("epsilon value", group["eps"], group["eps"] >= 0),
        ("weight_decay value", group["weight_decay"], group["weight_decay"] >= 0),
        ("beta parameter at index 0", beta1, 0 <= beta1 < 1),
        ("beta parameter at index 1", beta2, 0 <= beta2 < 1),
    ):
        if not fits:
            raise ValueError(f"{optimizer}: group {index}: Invalid {what}: {value}")
    for name, known in (("moments", MOMENTS), ("master", MASTERS)):
        if group[name] not in known:
            raise ValueError(
                f"{optimizer}: group {index}: unknown {name} {group[name]!r}, expected one of "
                f"{', '.join(map(repr, known))}"
            )
    decay = group["ema_decay"]
    if decay is not None and not 0 <= decay < 1:
        raise ValueError(f"{optimizer}: group {index}: expected ema_decay in [0, 1), got {decay}")
    for i, param in enumerate(group["params"]):
        name = f"{optimizer}: group {index}, parameter {i}"
        if param.is_complex() and group["moments"] in ("int8", "bfloat16"):
            raise ValueError(
                f"{name}: moments={group['moments']!r} needs a real parameter, got {param.dtype}"
            )
        if param.dtype == torch.float64 and group["moments"] == "int8":
            raise ValueError(f"{name}: moments='int8' needs a parameter of at most 32 bits")
        if group["master"] in BFLOAT16_ONLY and param.dtype == torch.float16:
            raise ValueError(
                f"{name}: master={group['master']!r} needs a bfloat16 parameter, got {param.dtype}"
            )


def moment_dtype(group: dict[str, Any], key: str, param: Tensor) -> torch.dtype:
    """The dtype of a moment, where torch's is that of the parameter."""
    moments = group["moments"]
    if moments is None or param.is_complex():
        return param.dtype
    if moments == "int8":
        return torch.int8 if key == "exp_avg" else torch.uint8  # a second moment has no sign
    return torch.float32 if moments == "float32" else torch.bfloat16


def complete_state(state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
    """Adds what a parameter's state lacks, under torch's keys where torch has them."""
    if "step" not in state:
        on_device = group["capturable"] or (group["fused"] and not param.is_cpu)
        doubles = torch.get_default_dtype() == torch.float64 and not on_device  # as torch has it
        count = torch.float64 if doubles else torch.float32
        state["step"] = torch.zeros((), dtype=count, device=param.device if on_device else "cpu")
    for key in KEYS[: 3 if group["amsgrad"] else 2]:
        dtype = moment_dtype(group, key, param)
        coded = dtype in (torch.int8, torch.uint8)
        if key not in state:
            form = torch.contiguous_format if coded else torch.preserve_format
            state[key] = torch.zeros_like(param, dtype=dtype, memory_format=form)
        if coded and f"{key}_scale" not in state:
            blocks = -(-param.numel() // CODE_BLOCK)
            scales = torch.zeros(blocks, dtype=torch.float32, device=param.device)
            state[f"{key}_scale"] = scales
    if param.dtype in LOW_PRECISION and "master" not in state:
        if group["master"] == "float32":
            state["master"] = param.detach().float()
        elif group["master"] == "split":
            state["master"] = torch.zeros_like(param, dtype=torch.int16)
        elif group["master"] == "kahan":
            state["master"] = torch.zeros_like(param)
    if group["ema_decay"] is not None and "ema" not in state:
        wide = torch.promote_types(param.dtype, torch.float32)
        state["ema"] = param.detach().to(wide, copy=True)


def _pairs(
    groups: list[dict[str, Any]], state_dict: StateDict
) -> list[tuple[int, int, Tensor, dict[str, Any]]]:
    """Group, index, parameter and saved state, of the parameters that have one."""
    saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    places = [
        (g, i, param) for g, group in enumerate(groups) for i, param in enumerate(group["params"])
    ]
    states = state_dict["state"]
    return [
        (g, i, param, states[key])
        for (g, i, param), key in zip(places, saved, strict=False)
        if key in states
    ]


def check_loaded(optimizer: str, groups: list[dict[str, Any]], state_dict: StateDict) -> None:
    """Raises ValueError where saved states cannot be those of these parameters."""
    for g, i, param, state in _pairs(groups, state_dict):
        for key in KEYS:
            value = state.get(key)
            if not isinstance(value, Tensor):
                continue
            name = f"{optimizer}: group {g}, parameter {i}: {key} of the state dict"
            if value.shape != param.shape:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, expected {tuple(param.shape)}"
                )
            wanted = moment_dtype(groups[g], key, param)
            coded = not (value.is_floating_point() or value.is_complex())
            if coded != (wanted in (torch.int8, torch.uint8)):
                raise ValueError(f"{name} is {value.dtype}, expected {wanted}")


def keeping_policy(groups: list[dict[str, Any]], state_dict: StateDict) -> StateDict:
    """The state dict, whose groups will replace ours, with our way of storing."""
    saved_groups = [
        {"ema_decay": group["ema_decay"], **saved, **{k: group[k] for k in ("moments", "master")}}
        for group, saved in zip(groups, state_dict["param_groups"], strict=False)
    ]
    extra = state_dict["param_groups"][len(groups) :]  # for torch to complain of
    return {**state_dict, "param_groups": [*saved_groups, *extra]}


def restore_dtypes(
    groups: list[dict[str, Any]], states: dict[Tensor, dict[str, Any]], state_dict: StateDict
) -> None:
    """Undoes that torch casts every loaded state to the dtype of its parameter."""
    for g, _, param, saved in _pairs(groups, state_dict):
        loaded = states[param]
        for key, value in saved.items():
            if key == "step" or not isinstance(value, Tensor):
                continue
            known = key in KEYS
            dtype = moment_dtype(groups[g], key, param) if known else value.dtype
            if loaded[key].dtype != dtype or loaded[key].device != param.device:
                loaded[key] = value.to(param.device, dtype)
