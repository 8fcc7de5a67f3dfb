"""Covariance pooling with a matrix square root."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._pooling import check_features, folded, of_positions, unfolded

__all__ = ["matrix_sqrt_pool"]


def matrix_sqrt_pool(x: Tensor, iterations: int = 5, *, packed: bool = True) -> Tensor:
    r"""The square root of the covariance of features, by Newton-Schulz iterations (iSQRT-COV).

    With :math:`C` the covariance of a sample's features over their positions, and from
    :math:`Y = C / \operatorname{tr} C` and :math:`Z = I` on, each iteration takes

    .. math::
        T = \tfrac{1}{2} (3 I - Z Y), \quad Y \leftarrow Y T, \quad Z \leftarrow T Z,

    and the result is :math:`\sqrt{\operatorname{tr} C}\,Y`, which tends to :math:`\sqrt{C}`. The
    gradient is that of these iterations, exactly, and costs symmetric products alone: every matrix
    is a polynomial in :math:`C`. For backward the features and the result are kept, no iterate.

    Args:
        x: features of shape (N, D, \*), with one axis of positions or more, any strides.
        iterations: how many; five are usual, and the result is then a smoothed root that is gentle
            to small eigenvalues.
        packed: return the upper triangle, row by row, with the values off the diagonal multiplied
            by :math:`\sqrt{2}`, see :func:`pyext.bilinear_pool`.

    Returns:
        (N, D (D + 1) / 2), or (N, D, D) with ``packed=False``, of the dtype of ``x``. Half types
        are computed in float32 and rounded once.

    Raises:
        ValueError: a shape that does not fit, no channel or no position, ``iterations`` < 1.
        TypeError: a dtype that is not floating point.

    Source:
        Li, Xie, Wang and Gao 2018, "Towards Faster Training of Global Covariance Pooling Networks
        by Iterative Matrix Square Root Normalization" (arXiv 1712.01034).

    Example:
        >>> import torch, pyext
        >>> x = torch.tensor([[[3.0, -3.0, 0.0, 0.0], [0.0, 0.0, 2.0, -2.0]]])
        >>> pyext.matrix_sqrt_pool(x, iterations=20, packed=False)  # of the covariance diag(4.5, 2)
        tensor([[[2.1213, 0.0000],
                 [0.0000, 1.4142]]])
    """
    x, _ = of_positions("matrix_sqrt_pool", x)
    return torch.ops.pyext.matrix_sqrt_pool.default(x, iterations, packed)


@torch.library.register_fake("pyext::matrix_sqrt_pool")
def _(x: Tensor, iterations: int = 5, packed: bool = True) -> Tensor:
    check_features("matrix_sqrt_pool", x)
    n, d, _ = x.shape
    return x.new_empty((n, d * (d + 1) // 2) if packed else (n, d, d))


@torch.library.register_fake("pyext::matrix_sqrt_pool_backward")
def _(grad: Tensor, x: Tensor, output: Tensor, iterations: int, packed: bool) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_vmap("pyext::matrix_sqrt_pool")
def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *options: Any) -> tuple[Tensor, int]:
    x = folded(x, in_dims[0], info.batch_size)
    output = torch.ops.pyext.matrix_sqrt_pool.default(x, *options)
    return unfolded(output, info.batch_size), 0


@torch.library.register_vmap("pyext::matrix_sqrt_pool_backward")
def _(
    info: Any,
    in_dims: tuple[int | None, ...],
    grad: Tensor,
    x: Tensor,
    output: Tensor,
    iterations: int,
    packed: bool,
) -> tuple[Tensor, int]:
    tensors = [
        folded(z, dim, info.batch_size)
        for z, dim in zip((grad, x, output), in_dims[:3], strict=True)
    ]
    grad_x = torch.ops.pyext.matrix_sqrt_pool_backward.default(*tensors, iterations, packed)
    return unfolded(grad_x, info.batch_size), 0
