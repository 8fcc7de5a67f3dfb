"""Layers on :func:`pyext.bilinear` and :func:`pyext.biaffine`."""

from __future__ import annotations

import torch
from torch import Tensor

from pyext.ops.bilinear import biaffine, bilinear

__all__ = ["Biaffine", "Bilinear"]


class Bilinear(torch.nn.Bilinear):
    """:class:`torch.nn.Bilinear` by :func:`pyext.bilinear`.

    Arguments, initialisation and state dict are torch's.

    Example:
        >>> import torch, pyext
        >>> layer = pyext.nn.Bilinear(20, 30, 40)
        >>> layer(torch.randn(128, 20), torch.randn(128, 30)).shape
        torch.Size([128, 40])
    """

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        r"""The forms of ``input1`` (\*, I) and ``input2`` (\*, J)."""
        return bilinear(input1, input2, self.weight, self.bias)


class Biaffine(torch.nn.Bilinear):
    """A bilinear form per output of all pairs of positions, by :func:`pyext.biaffine`.

    Arguments, initialisation and state dict are those of :class:`torch.nn.Bilinear`.

    Example:
        >>> import torch, pyext
        >>> layer = pyext.nn.Biaffine(64, 64, 5)
        >>> heads, dependents = torch.randn(2, 10, 64), torch.randn(2, 12, 64)
        >>> layer(heads, dependents).shape
        torch.Size([2, 10, 12, 5])
    """

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        r"""The forms of ``input1`` (\*, X, I) and ``input2`` (\*, Y, J), of shape (\*, X, Y, O)."""
        return biaffine(input1, input2, self.weight, self.bias)
