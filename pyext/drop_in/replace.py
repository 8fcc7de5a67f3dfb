"""`pyext.replace`: the modules of a model become pyext's."""

from __future__ import annotations

from typing import TypeVar

import torch

from pyext import nn

__all__ = ["replace"]

Model = TypeVar("Model", bound=torch.nn.Module)


def replace(model: Model) -> Model:
    """Makes the modules of a model pyext's: :class:`torch.nn.Bilinear`, ``CrossEntropyLoss``.

    They stay the objects that they are and change their class. Parameters, buffers, hooks, the
    training flag, names, keys of state dicts and what else refers to them are therefore as before,
    and a module that is in several places is still one. Subclasses are left alone, and so are
    modules with parametrizations, which are subclasses too.

    The loss of float16 and bfloat16 logits becomes float32, as of
    :class:`pyext.nn.CrossEntropyLoss`.

    Args:
        model: a module, changed in place; it may itself be one of these.

    Returns:
        The model.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> import torch, pyext
        >>> pyext.replace(torch.nn.ModuleList([torch.nn.Bilinear(2, 3, 4)]))
        ModuleList(
          (0): Bilinear(in1_features=2, in2_features=3, out_features=4, bias=True)
        )
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"replace(): expected a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if type(module) is torch.nn.Bilinear:
            module.__class__ = nn.Bilinear
        elif type(module) is torch.nn.CrossEntropyLoss:
            nn.CrossEntropyLoss.adopt(module)
    return model
