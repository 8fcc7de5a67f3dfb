"""Compact bilinear pooling: bilinear pooling sketched into few values."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pyext.ops._pooling import check_features, folded, of_positions, one_by_one, unfolded

__all__ = ["TensorSketch", "compact_bilinear_pool", "tensor_sketch"]

_Bits = TypeVar("_Bits", int, Tensor)


class TensorSketch(NamedTuple):
    """Two count sketches: where each channel of two inputs goes, and with which sign.

    Attributes:
        hash1: for each channel of the first input a place in [0, output_dim), int64.
        sign1: for each channel of the first input 1 or -1, float32.
        hash2: as ``hash1``, for the channels of the second input.
        sign2: as ``sign1``, for the channels of the second input.
    """

    hash1: Tensor
    sign1: Tensor
    hash2: Tensor
    sign2: Tensor


def tensor_sketch(
    channels1: int,
    channels2: int | None = None,
    output_dim: int = 8192,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> TensorSketch:
    """Draws the two independent count sketches of :func:`compact_bilinear_pool` from a seed.

    They are counted, not drawn from a generator: the same everywhere, whatever the device and the
    version of torch, and inside ``torch.compile`` and ``vmap`` as well.

    Args:
        channels1: channels of the first input.
        channels2: channels of the second; by default as many.
        output_dim: length of the sketch.
        seed: any integer.
        device: where the tensors live; torch's default device by default.

    Returns:
        A :class:`TensorSketch`.

    Raises:
        ValueError: a number of channels or ``output_dim`` is less than 1.

    Example:
        >>> import pyext
        >>> sketch = pyext.tensor_sketch(4, output_dim=16, seed=1)
        >>> sketch.hash1.shape, sketch.sign2.abs()
        (torch.Size([4]), tensor([1., 1., 1., 1.]))
    """
    channels2 = channels1 if channels2 is None else channels2
    for name, least in (
        ("channels1", channels1),
        ("channels2", channels2),
        ("output_dim", output_dim),
    ):
        if least < 1:
            raise ValueError(f"tensor_sketch: expected {name} >= 1, got {least}")
    count = torch.arange(channels1 + channels2, device=device)
    bits = _mixed(count + _mixed(seed))
    hashes, signs = (bits >> 1) % output_dim, (1 - 2 * (bits & 1)).float()
    (hash1, hash2), (sign1, sign2) = (x.split([channels1, channels2]) for x in (hashes, signs))
    return TensorSketch(hash1, sign1, hash2, sign2)


def _mixed(bits: _Bits) -> _Bits:
    """32 bits that look drawn at random, from 32 that count: the finalizer of a hash function."""
    low = 0xFFFFFFFF
    bits = bits & low
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & low
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & low
    return bits ^ (bits >> 16)


def compact_bilinear_pool(
    x: Tensor,
    y: Tensor | None = None,
    output_dim: int = 8192,
    *,
    seed: int = 0,
    sketch: TensorSketch | None = None,
) -> Tensor:
    r"""Compact bilinear pooling: a sketch of the bilinear features, summed over positions.

    Count sketches of :math:`x_s` and :math:`y_s` are convolved in a circle at every position s and
    summed, which approximates bilinear pooling: the expectation of the inner product of two results
    is that of their second moments. Since the sum is linear, it is computed as

    .. math::
        \mathrm{out}_k = \sum_{h^1_i + h^2_j \equiv k} s^1_i s^2_j \sum_s x_{is} y_{js}
        \quad (\mathrm{mod}\ d),

    equal to the definition by Fourier transforms, but with neither a transform nor a tensor of
    shape (N, S, d).

    Args:
        x: features of shape (N, D1, \*), with one axis of positions or more, any strides.
        y: features (N, D2, \*) at the same positions; by default ``x``.
        output_dim: length d of the sketch.
        seed: from which the sketches are drawn.
        sketch: sketches from :func:`tensor_sketch`, of this ``output_dim``; overrides ``seed``.

    Returns:
        (N, output_dim), of the dtype of ``x``, neither averaged nor normed. Half types are computed
        in float32 and rounded once.

    Raises:
        ValueError: shapes that do not fit, no channel or no position, ``output_dim`` < 1, or on the
            CPU a hash that is not in [0, output_dim).
        TypeError: dtypes that differ or are not floating point.

    Source:
        Gao, Beijbom, Zhang and Darrell 2016, "Compact Bilinear Pooling" (arXiv 1511.06062).

    Example:
        >>> import torch, pyext
        >>> sketch = pyext.TensorSketch(
        ...     hash1=torch.tensor([0, 1]),
        ...     sign1=torch.tensor([1.0, -1.0]),
        ...     hash2=torch.tensor([0, 2]),
        ...     sign2=torch.tensor([1.0, 1.0]),
        ... )
        >>> x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])  # with x x^T = [[5, 11], [11, 25]]
        >>> pyext.compact_bilinear_pool(x, output_dim=3, sketch=sketch)
        tensor([[-20., -11.,  11.]])
    """
    x, y = of_positions("compact_bilinear_pool", x, y)
    if output_dim < 1:
        raise ValueError(f"compact_bilinear_pool: expected output_dim >= 1, got {output_dim}")
    if sketch is None:
        # At least 1: that there is no channel is for the op to say.
        d1, d2 = (max(z.shape[1], 1) for z in (x, x if y is None else y))
        sketch = tensor_sketch(d1, d2, output_dim, seed=seed, device=x.device)
    return torch.ops.pyext.compact_bilinear_pool.default(x, y, *sketch, output_dim)


# ---- fake kernels and batching rules ----


@torch.library.register_fake("pyext::compact_bilinear_pool")
def _(
    x: Tensor,
    y: Tensor | None,
    hash1: Tensor,
    sign1: Tensor,
    hash2: Tensor,
    sign2: Tensor,
    output_dim: int,
) -> Tensor:
    check_features("compact_bilinear_pool", x)
    return x.new_empty(x.shape[0], output_dim)


@torch.library.register_fake("pyext::compact_bilinear_pool_backward")
def _(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    hash1: Tensor,
    sign1: Tensor,
    hash2: Tensor,
    sign2: Tensor,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0 if y is None else y.shape)


@torch.library.register_vmap("pyext::compact_bilinear_pool")
def _(info: Any, in_dims: tuple[int | None, ...], *values: Any) -> tuple[Tensor, int]:
    op, batch = torch.ops.pyext.compact_bilinear_pool.default, info.batch_size
    if any(dim is not None for dim in in_dims[2:]):  # a sketch of each example's own
        (output,) = one_by_one(op, batch, in_dims, values)
        return output, 0
    x, y = (folded(z, dim, batch) for z, dim in zip(values[:2], in_dims[:2], strict=True))
    return unfolded(op(x, y, *values[2:]), batch), 0


@torch.library.register_vmap("pyext::compact_bilinear_pool_backward")
def _(
    info: Any, in_dims: tuple[int | None, ...], *values: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int | None]]:
    op, batch = torch.ops.pyext.compact_bilinear_pool_backward.default, info.batch_size
    if any(dim is not None for dim in in_dims[3:]):
        grad_x, grad_y = one_by_one(op, batch, in_dims, values)
        return (grad_x, grad_y), (0, 0)
    tensors = [folded(z, dim, batch) for z, dim in zip(values[:3], in_dims[:3], strict=True)]
    grad_x, grad_y = op(*tensors, *values[3:])
    if values[2] is None:
        return (unfolded(grad_x, batch), grad_y), (0, None)
    return (unfolded(grad_x, batch), unfolded(grad_y, batch)), (0, 0)
