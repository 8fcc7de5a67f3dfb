"""Values of an ONNX graph under construction, and their arithmetic.

torch's exporter gives values Python's operators, but knows the dtype of its own values alone, not
of those that a translation makes. So a translation says in which dtype it computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18 as op

Value = Any  # of onnxscript, which calls it by several names

_FLOATS = ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
_SIGNED = ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT16, ir.DataType.INT8
_TORCH_DTYPES = {
    dtype: getattr(torch, dtype.numpy().name)
    for dtype in (*_FLOATS, *_SIGNED, ir.DataType.UINT8, ir.DataType.BOOL)
}
_ONNX_DTYPES = {theirs: ours for ours, theirs in _TORCH_DTYPES.items()}


class Arithmetic:
    """The dtype in which an op computes: float64 for float64, float32 for everything narrower."""

    def __init__(self, dtype: ir.DataType) -> None:
        self.dtype = ir.DataType.DOUBLE if dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT

    def of(self, value: Value) -> Value:
        """The value in this dtype."""
        return op.Cast(value, to=self.dtype)

    def constant(self, value: Any) -> Value:
        """A number, or an array of them."""
        return op.Constant(value=ir.tensor(np.asarray(value, self.dtype.numpy())))

    def size(self, value: Value, axis: int) -> Value:
        """The size of an axis, as a number."""
        return op.Squeeze(self.of(size(value, axis)))

    def zeros(self, shape: Value) -> Value:
        """Zeros of a shape that the graph computes."""
        return op.Expand(self.constant([0.0]), shape)


def size(value: Value, axis: int) -> Value:
    """The size of an axis, as a shape of one axis."""
    return op.Shape(value, start=axis, end=axis + 1)


def integers(values: list[int]) -> Value:
    """Constants of int64, such as axes and shapes."""
    return op.Constant(value=ir.tensor(values, dtype=ir.DataType.INT64))


def torch_dtype(dtype: ir.DataType) -> torch.dtype:
    """Torch's name of an ONNX dtype."""
    return _TORCH_DTYPES[dtype]


def onnx_dtype(dtype: torch.dtype) -> ir.DataType:
    """ONNX's name of a torch dtype."""
    return _ONNX_DTYPES[dtype]
