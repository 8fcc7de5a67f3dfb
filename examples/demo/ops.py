"""The ops that a model of the demo takes from outside: torch's own, or pyext's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import pyext

EPS = 1e-5  # under the root of the signed square root


@dataclass(frozen=True)
class Ops:
    """One bundle. A model is given one and calls its ops through it, so that it is written once."""

    name: str
    cross_entropy: Callable[..., Tensor]
    signed_sqrt: Callable[[Tensor], Tensor]
    einsum: Callable[..., Tensor]
    optimizer: Callable[..., torch.optim.Optimizer]


def _signed_sqrt(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.sqrt(x.abs() + EPS)


# Torch's at its best: without flags its optimizer loops over the parameters.
TORCH = Ops(
    "torch",
    F.cross_entropy,
    _signed_sqrt,
    torch.einsum,
    partial(torch.optim.AdamW, fused=True),
)
PYEXT = Ops(
    "pyext",
    pyext.cross_entropy,
    lambda x: pyext.signed_sqrt(x, EPS),
    pyext.einsum,
    pyext.optim.AdamW,
)
BUNDLES = (TORCH, PYEXT)
