"""The poolings and their signed square root in ONNX operators.

Each function has the arguments of the op of its name in csrc/schemas.cpp.
"""

from __future__ import annotations

import numpy as np
import torch
from onnxscript import opset18 as op

from pyext.onnx._values import Arithmetic, Value, integers, onnx_dtype, size


def signed_sqrt(self: Value, eps: float = 1e-5) -> Value:
    """sign(x) sqrt(|x| + eps); integers are computed in the default dtype."""
    floating = self.dtype.is_floating_point()
    dtype = self.dtype if floating else onnx_dtype(torch.get_default_dtype())
    arithmetic = Arithmetic(dtype)
    return op.Cast(_rooted(arithmetic, arithmetic.of(self), eps), to=dtype)


def bilinear_pool(
    x: Value,
    y: Value = None,
    scale: float | None = None,
    eps: float = 1e-5,
    signed_sqrt: bool = True,
    l2: bool = True,
    packed: bool = False,
    center: bool = False,
) -> tuple[Value, Value]:
    """Second moments, rooted and normed; and the norms."""
    arithmetic = Arithmetic(x.dtype)
    features = [arithmetic.of(z) for z in ((x,) if y is None else (x, y))]
    if center:
        features = [_centered(z) for z in features]
    products = _products(features[0], features[-1])
    if scale is None:
        result = products / arithmetic.size(x, 2)
    else:
        result = products * arithmetic.constant(scale)
    if signed_sqrt:
        result = _rooted(arithmetic, result, eps)
    norm = op.Expand(arithmetic.constant([1.0]), size(x, 0))
    if l2:
        squares = op.ReduceSumSquare(result, integers([1, 2]), keepdims=1)
        norm = op.Max(op.Sqrt(squares), arithmetic.constant(1e-12))
        result, norm = result / norm, op.Squeeze(norm, integers([1, 2]))
    if packed:
        result = _packed(arithmetic, result, _channels("bilinear_pool(packed=True)", x))
    return op.Cast(result, to=x.dtype), norm


def compact_bilinear_pool(
    x: Value,
    y: Value,
    hash1: Value,
    sign1: Value,
    hash2: Value,
    sign2: Value,
    output_dim: int,
) -> Value:
    """Second moments, added to the places that their two hashes give together."""
    arithmetic = Arithmetic(x.dtype)
    first = arithmetic.of(x)
    products = _products(first, first if y is None else arithmetic.of(y))
    row, column = integers([1]), integers([0])
    signs = op.Unsqueeze(arithmetic.of(sign1), row) * op.Unsqueeze(arithmetic.of(sign2), column)
    places = op.Add(op.Unsqueeze(hash1, row), op.Unsqueeze(hash2, column))
    places = op.Mod(places, integers([output_dim]))
    updates = op.Reshape(products * signs, integers([0, -1]))
    places = op.Expand(op.Reshape(places, integers([1, -1])), op.Shape(updates))
    sums = arithmetic.zeros(op.Concat(size(x, 0), integers([output_dim]), axis=0))
    return op.Cast(op.ScatterElements(sums, places, updates, axis=1, reduction="add"), to=x.dtype)


def matrix_sqrt_pool(x: Value, iterations: int = 5, packed: bool = True) -> Value:
    """The square root of the covariance by Newton-Schulz iterations."""
    arithmetic, channels = Arithmetic(x.dtype), _channels("matrix_sqrt_pool", x)
    features = _centered(arithmetic.of(x))
    covariance = _products(features, features) / arithmetic.size(x, 2)
    identity = arithmetic.constant(np.eye(channels))
    trace = op.ReduceSum(covariance * identity, integers([1, 2]), keepdims=1)
    trace = op.Max(trace, arithmetic.constant(1e-12))
    three, half = arithmetic.constant(3 * np.eye(channels)), arithmetic.constant(0.5)
    root, inverse = covariance / trace, identity
    for _ in range(iterations):
        step = (three - inverse @ root) * half
        root, inverse = root @ step, step @ inverse
    result = root * op.Sqrt(trace)
    if packed:
        result = _packed(arithmetic, result, channels)
    return op.Cast(result, to=x.dtype)


def _rooted(arithmetic: Arithmetic, x: Value, eps: float) -> Value:
    return op.Sign(x) * op.Sqrt(op.Abs(x) + arithmetic.constant(eps))


def _centered(x: Value) -> Value:
    return x - op.ReduceMean(x, integers([2]), keepdims=1)


def _products(x: Value, y: Value) -> Value:
    """No MatMul: with that, ONNX Runtime fuses a scale, which it rounds to float32."""
    return op.Einsum(x, y, equation="nis,njs->nij")


def _packed(arithmetic: Arithmetic, matrices: Value, channels: int) -> Value:
    """The upper triangle, row by row, with the values off the diagonal times sqrt(2)."""
    row, column = np.triu_indices(channels)
    places = integers((row * channels + column).tolist())
    factors = arithmetic.constant(np.where(row == column, 1.0, np.sqrt(2.0)))
    return op.Gather(op.Reshape(matrices, integers([0, -1])), places, axis=1) * factors


def _channels(op: str, x: Value) -> int:
    channels = x.shape[1]
    if not isinstance(channels, int):
        raise ValueError(f"{op}: ONNX needs a fixed number of channels, got {channels}")
    return channels
