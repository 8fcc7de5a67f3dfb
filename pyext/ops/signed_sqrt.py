"""The signed square root, the pointwise op of bilinear pooling."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["signed_sqrt", "signed_sqrt_"]


def signed_sqrt(input: Tensor, eps: float = 1e-5, *, out: Tensor | None = None) -> Tensor:
    r"""Signed square root, :math:`\operatorname{sign}(x) \sqrt{|x| + \epsilon}` elementwise.

    The derivative is :math:`1 / (2 \sqrt{|x| + \epsilon})`, and 0 at :math:`x = 0` where the sign
    is 0; with ``eps > 0`` it is finite everywhere.

    Args:
        input: floating-point tensor of any shape; integers and bool are computed in the default
            dtype, as by :func:`torch.sqrt`.
        eps: non-negative number added under the root.
        out: the output tensor.

    Returns:
        A tensor of the shape of ``input``.

    Raises:
        ValueError: ``eps`` is negative.

    Source:
        Lin, RoyChowdhury and Maji 2015, "Bilinear CNN Models for Fine-grained Visual Recognition".

    Example:
        >>> import torch, pyext
        >>> pyext.signed_sqrt(torch.tensor([-4.0, 0.0, 9.0]), eps=0.0)
        tensor([-2.,  0.,  3.])
    """
    if out is not None:
        return torch.ops.pyext.signed_sqrt.out(input, eps, out=out)
    return torch.ops.pyext.signed_sqrt.default(input, eps)


def signed_sqrt_(input: Tensor, eps: float = 1e-5) -> Tensor:
    """In-place :func:`signed_sqrt`.

    Example:
        >>> import torch, pyext
        >>> pyext.signed_sqrt_(torch.tensor([-4.0, 9.0]), eps=0.0)
        tensor([-2.,  3.])
    """
    return torch.ops.pyext.signed_sqrt_.default(input, eps)


def _check_eps(eps: float) -> None:
    if eps < 0:
        raise ValueError(f"signed_sqrt: expected eps >= 0, got {eps}")


# torch.sqrt has the same promotion, resizing and cast rules, so it says the shapes and dtypes.
@torch.library.register_fake("pyext::signed_sqrt")
def _(self: Tensor, eps: float = 1e-5) -> Tensor:
    _check_eps(eps)
    return torch.sqrt(self)


@torch.library.register_fake("pyext::signed_sqrt_")
def _(self: Tensor, eps: float = 1e-5) -> Tensor:
    _check_eps(eps)
    return self.sqrt_()


@torch.library.register_fake("pyext::signed_sqrt.out")
def _(self: Tensor, eps: float = 1e-5, *, out: Tensor) -> Tensor:
    _check_eps(eps)
    return torch.sqrt(self, out=out)


@torch.library.register_fake("pyext::signed_sqrt_backward")
def _(grad: Tensor, result: Tensor) -> Tensor:
    return torch.mul(grad, result)


@torch.library.register_vmap("pyext::signed_sqrt")
def _(info: Any, in_dims: tuple[int, None], self: Tensor, eps: float = 1e-5) -> tuple[Tensor, int]:
    return torch.ops.pyext.signed_sqrt.default(self, eps), in_dims[0]


@torch.library.register_vmap("pyext::signed_sqrt_")
def _(info: Any, in_dims: tuple[int, None], self: Tensor, eps: float = 1e-5) -> tuple[Tensor, int]:
    return torch.ops.pyext.signed_sqrt_.default(self, eps), in_dims[0]


@torch.library.register_vmap("pyext::signed_sqrt_backward")
def _(
    info: Any, in_dims: tuple[int | None, int | None], grad: Tensor, result: Tensor
) -> tuple[Tensor, int]:
    grad_dim, result_dim = in_dims
    grad = grad.movedim(grad_dim, 0) if grad_dim is not None else grad.unsqueeze(0)
    result = result.movedim(result_dim, 0) if result_dim is not None else result.unsqueeze(0)
    return torch.ops.pyext.signed_sqrt_backward.default(grad, result), 0
