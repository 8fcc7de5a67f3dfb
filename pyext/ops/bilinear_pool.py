"""Bilinear pooling: second moments of features, rooted and normed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyext.ops._pooling import check_features, folded, of_positions, unfolded

__all__ = ["bilinear_pool", "unpack_symmetric"]

_NORMALIZATIONS = ("signed_sqrt", "l2")


def bilinear_pool(
    x: Tensor,
    y: Tensor | None = None,
    *,
    scale: float | None = None,
    eps: float = 1e-5,
    normalize: Sequence[str] = ("signed_sqrt", "l2"),
    packed: bool = False,
    center: bool = False,
) -> Tensor:
    r"""Bilinear pooling: products of all pairs of channels, averaged over positions.

    With a sample's features :math:`X` and :math:`Y` (D, S), or :math:`Y = X`,

    .. math::
        G = \tfrac{1}{S} X Y^\top, \quad
        R = \operatorname{sign}(G) \sqrt{|G| + \epsilon}, \quad
        Z = R / \max(\|R\|_2, 10^{-12}).

    The matrix of one input is symmetric, so only one triangle is computed, and so is its gradient.
    Scale, root and norm are applied while a tile is in cache. For backward the inputs, the result
    and one number per sample are kept.

    Args:
        x: features of shape (N, D1, \*), with one axis of positions or more, any strides.
        y: features of a second network (N, D2, \*) at the same positions; by default ``x``.
        scale: what the sums over positions are multiplied by; 1/S for S positions by default.
        eps: non-negative number added under the root.
        normalize: which of "signed_sqrt" and "l2" are done; ``()`` for neither.
        packed: of the symmetric matrix return the upper triangle, row by row, as
            :func:`torch.triu_indices` goes, with the values off the diagonal multiplied by
            :math:`\sqrt{2}`. Inner products and norms of packed results are therefore those of the
            matrices. :func:`unpack_symmetric` gives the matrices back.
        center: subtract the mean over the positions, which makes G a covariance.

    Returns:
        (N, D1, D2), or (N, D1 (D1 + 1) / 2) if ``packed``, of the dtype of ``x``. Half types are
        computed in float32 and rounded once.

    Raises:
        ValueError: shapes that do not fit, no channel or no position, ``packed`` with ``y``, a
            negative ``eps``, or an unknown name in ``normalize``.
        TypeError: dtypes that differ or are not floating point.

    Source:
        Lin, RoyChowdhury and Maji 2015, "Bilinear CNN Models for Fine-grained Visual Recognition".

    Example:
        >>> import torch, pyext
        >>> x = torch.tensor([[[1.0, 3.0], [0.0, -2.0]]])
        >>> pyext.bilinear_pool(x, normalize=())
        tensor([[[ 5., -3.],
                 [-3.,  2.]]])
        >>> pyext.bilinear_pool(torch.rand(8, 64, 7, 7), packed=True).shape
        torch.Size([8, 2080])
    """
    check_normalize(normalize)
    x, y = of_positions("bilinear_pool", x, y)
    output, _ = torch.ops.pyext.bilinear_pool.default(
        x,
        y,
        scale=scale,
        eps=eps,
        signed_sqrt="signed_sqrt" in normalize,
        l2="l2" in normalize,
        packed=packed,
        center=center,
    )
    return output


def check_normalize(normalize: Sequence[str]) -> None:
    """Raises ValueError for what :func:`bilinear_pool` does not do."""
    if isinstance(normalize, str) or not set(normalize) <= {*_NORMALIZATIONS}:
        raise ValueError(
            f"bilinear_pool: expected normalize to be a tuple of names out of {_NORMALIZATIONS}, "
            f"got {normalize!r}"
        )


def unpack_symmetric(packed: Tensor) -> Tensor:
    r"""The symmetric matrices of packed triangles, as poolings with ``packed=True`` return them.

    Args:
        packed: upper triangles, row by row, with the values off the diagonal multiplied by
            :math:`\sqrt{2}`; shape (\*, D (D + 1) / 2).

    Returns:
        The matrices (\*, D, D).

    Raises:
        ValueError: the last axis is no triangle.

    Example:
        >>> import torch, pyext
        >>> pyext.unpack_symmetric(torch.tensor([1.0, 0.0, 3.0]))
        tensor([[1., 0.],
                [0., 3.]])
    """
    count = packed.shape[-1] if packed.dim() else 0
    size = (int(math.sqrt(8 * count + 1)) - 1) // 2  # exact; compilers know no math.isqrt
    if not packed.dim() or size * (size + 1) // 2 != count:
        raise ValueError(
            "unpack_symmetric: expected packed of shape (*, D (D + 1) / 2) for a whole D, got "
            f"{list(packed.shape)}"
        )
    at = torch.arange(size, device=packed.device)
    row, column = torch.minimum(at, at.unsqueeze(1)), torch.maximum(at, at.unsqueeze(1))
    place = row * (2 * size - row - 1) // 2 + column
    matrices = packed.index_select(-1, place.flatten()).unflatten(-1, (size, size))
    return torch.where(row == column, matrices, matrices * math.sqrt(0.5))


# ---- fake kernels and batching rules ----


@torch.library.register_fake("pyext::bilinear_pool")
def _(x: Tensor, y: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    check_features("bilinear_pool", x)
    n, d1, _ = x.shape
    d2 = d1 if y is None else y.shape[1]
    sizes = (n, d1 * (d1 + 1) // 2) if options.get("packed") else (n, d1, d2)
    return x.new_empty(sizes), x.new_empty(n, dtype=torch.promote_types(x.dtype, torch.float32))


@torch.library.register_fake("pyext::bilinear_pool_backward")
def _(
    grad: Tensor, x: Tensor, y: Tensor | None, output: Tensor, norm: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0 if y is None else y.shape)


@torch.library.register_vmap("pyext::bilinear_pool")
def _(
    info: Any, in_dims: tuple[int | None, ...], *features: Tensor | None, **options: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    batch = info.batch_size
    x_and_y = [folded(z, dim, batch) for z, dim in zip(features, in_dims, strict=True)]
    output, norm = torch.ops.pyext.bilinear_pool.default(*x_and_y, **options)
    return (unfolded(output, batch), unfolded(norm, batch)), (0, 0)


@torch.library.register_vmap("pyext::bilinear_pool_backward")
def _(
    info: Any, in_dims: tuple[int | None, ...], *values: Tensor | None, **options: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int | None]]:
    batch = info.batch_size
    arguments = [folded(z, dim, batch) for z, dim in zip(values, in_dims, strict=True)]
    grad_x, grad_y = torch.ops.pyext.bilinear_pool_backward.default(*arguments, **options)
    if values[2] is None:
        return (unfolded(grad_x, batch), grad_y), (0, None)
    return (unfolded(grad_x, batch), unfolded(grad_y, batch)), (0, 0)
