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
    bilinear_pool: Callable[[Tensor], Tensor]
    einsum: Callable[..., Tensor]
    optimizer: Callable[..., torch.optim.Optimizer]


def _bilinear_pool(x: Tensor) -> Tensor:
    x = x.flatten(2)
    products = torch.bmm(x, x.mT) / x.size(2)
    roots = torch.sign(products) * torch.sqrt(products.abs() + EPS)
    return F.normalize(roots.flatten(1)).view_as(products)


# Torch's at its best: without flags its optimizer loops over the parameters.
TORCH = Ops(
    "torch",
    F.cross_entropy,
    _bilinear_pool,
    torch.einsum,
    partial(torch.optim.AdamW, fused=True),
)
PYEXT = Ops(
    "pyext",
    pyext.cross_entropy,
    partial(pyext.bilinear_pool, eps=EPS),
    pyext.einsum,
    pyext.optim.AdamW,
)
BUNDLES = (TORCH, PYEXT)
