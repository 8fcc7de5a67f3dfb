"""Bilinear and biaffine layers: contractions of three operands."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["biaffine", "bilinear"]


def bilinear(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""A bilinear form per output, :math:`\sum_{ij} x^1_i W_{oij} x^2_j + b_o`.

    A drop-in for :func:`torch.nn.functional.bilinear`. It is one matrix product whose wide factor,
    the products :math:`x^1_i x^2_j`, is formed tile by tile in cache, and so are its gradients:
    there is no tensor of size B I J, as there is in torch's.

    Args:
        x1: shape (\*, I), or (I).
        x2: shape (\*, J), with the leading axes of ``x1``.
        weight: shape (O, I, J).
        bias: shape (O).

    Returns:
        Shape (\*, O). Half types are computed in float32 and rounded once.

    Raises:
        RuntimeError: shapes that do not fit, or dtypes that differ; under autocast the widest dtype
            is taken, as :func:`torch.nn.functional.bilinear` does on CUDA.

    Example:
        >>> import torch, pyext
        >>> x1, x2 = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
        >>> pyext.bilinear(x1, x2, torch.ones(1, 2, 2))
        tensor([[21.]])
    """
    _check_dtypes("bilinear", x1, x2, weight, bias)
    _check_ranks("bilinear", x1, x2, weight, 1)
    if x1.dim() != x2.dim():
        raise RuntimeError(
            f"bilinear(): input dimensions do not match: got {x1.dim()} and {x2.dim()}"
        )
    for axis in range(x1.dim() - 1):
        if x1.shape[axis] != x2.shape[axis]:
            raise RuntimeError(
                f"bilinear(): input batch dimensions do not match at dim {axis}: "
                f"got {x1.shape[axis]} and {x2.shape[axis]}"
            )
    _check_sizes("bilinear", x1, x2, weight, bias)
    if x1.dim() == 2:
        return _forms("bi,oij,bj->bo", x1, x2, weight, bias)
    result = _forms("bi,oij,bj->bo", _rows(x1), _rows(x2), weight, bias)
    return result.reshape(x1.shape[:-1] + weight.shape[:1])


def biaffine(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""A bilinear form per output for all pairs of positions of two sequences.

    :math:`\mathrm{out}_{xyo} = \sum_{ij} x^1_{xi} W_{oij} x^2_{yj} + b_o`, the scores of
    deep biaffine attention, such as those of every head and dependent in a sentence. The linear
    terms of a biaffine form come with a 1 appended to the features of ``x1`` or ``x2``.

    Args:
        x1: shape (\*, X, I).
        x2: shape (\*, Y, J), with leading axes that broadcast with those of ``x1``.
        weight: shape (O, I, J).
        bias: shape (O).

    Returns:
        Shape (\*, X, Y, O). Half types are computed in float32 and rounded once.

    Raises:
        RuntimeError: shapes that do not fit, or dtypes that differ; under autocast the widest dtype
            is taken.

    Source:
        Dozat and Manning 2017, "Deep Biaffine Attention for Neural Dependency Parsing"
        (arXiv 1611.01734).

    Example:
        >>> import torch, pyext
        >>> words = torch.rand(2, 10, 64)
        >>> pyext.biaffine(words, words, torch.rand(5, 64, 64)).shape
        torch.Size([2, 10, 10, 5])
    """
    _check_dtypes("biaffine", x1, x2, weight, bias)
    _check_ranks("biaffine", x1, x2, weight, 2)
    for axis in range(-min(x1.dim(), x2.dim()), -2):
        if x1.shape[axis] != x2.shape[axis] and x1.shape[axis] != 1 and x2.shape[axis] != 1:
            raise RuntimeError(
                "biaffine(): leading dimensions do not broadcast: "
                f"got {list(x1.shape)} and {list(x2.shape)}"
            )
    _check_sizes("biaffine", x1, x2, weight, bias)
    return _forms("...xi,oij,...yj->...xyo", x1, x2, weight, bias)


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)


def _forms(
    equation: str,
    x1: Tensor,
    x2: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    if not torch.jit.is_scripting() and _is_autocast(x1):
        # As torch.nn.functional.bilinear, which autocast does not make narrower.
        with torch.autocast(x1.device.type, enabled=False):
            return _forms(equation, x1, x2, weight, bias)
    dtype = x1.dtype
    is_mixed = not (x2.dtype == dtype and weight.dtype == dtype)
    # Sums of 16-bit numbers stay in float32 until the bias is added.
    widens = bias is not None and not is_mixed and dtype in (torch.bfloat16, torch.float16)
    operands = [x1, weight, x2.float() if widens else x2]
    # Not pyext.einsum: a path that depends on sizes would not be that of a compiled program.
    if torch.jit.is_scripting():  # TorchScript knows no names of overloads
        result = torch.ops.pyext.einsum(equation, operands)
    else:
        result = torch.ops.pyext.einsum.default(equation, operands)
    if bias is not None:
        result = result + bias
    return result.to(dtype) if widens else result


def _is_autocast(x: Tensor) -> bool:
    if torch.jit.is_scripting():
        return False
    kind = x.device.type
    return kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)


# ---- checks: what torch.nn.functional.bilinear refuses, in its words ----


def _check_dtypes(op: str, x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    same = x1.dtype == x2.dtype and x1.dtype == weight.dtype
    if (same and (bias is None or bias.dtype == x1.dtype)) or _is_autocast(x1):
        return
    got = f"input1: {x1.dtype}, input2: {x2.dtype}, weight: {weight.dtype}"
    if bias is not None:
        got += f", bias: {bias.dtype}"
    raise RuntimeError(f"{op}(): all tensors must have the same dtype, got {got}")


def _check_ranks(op: str, x1: Tensor, x2: Tensor, weight: Tensor, least: int) -> None:
    for name, x in (("input1", x1), ("input2", x2)):
        if x.dim() < least:
            raise RuntimeError(
                f"{op}(): expected {name} of at least {least} dimensions, got {list(x.shape)}"
            )
    if weight.dim() != 3:
        raise RuntimeError(f"{op}(): expected weight of shape (O, I, J), got {list(weight.shape)}")


def _check_sizes(op: str, x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for axis, x in ((1, x1), (2, x2)):
        if x.shape[-1] != weight.shape[axis]:
            raise RuntimeError(
                f"{op}(): input{axis} size does not match weight size: "
                f"got {x.shape[-1]} but expected {weight.shape[axis]}"
            )
    if bias is not None and list(bias.shape) != [weight.shape[0]]:
        got = f"{bias.shape[0]}" if bias.dim() == 1 else f"{list(bias.shape)}"
        raise RuntimeError(
            f"{op}(): bias size does not match weight size: "
            f"got {got} but expected {weight.shape[0]}"
        )
