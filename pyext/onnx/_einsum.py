"""einsum in ONNX operators: the Einsum of ONNX, with the letters and the dtypes that it knows."""

from __future__ import annotations

import string
from collections.abc import Sequence

import onnx_ir as ir
import torch
from onnxscript import opset18 as op

from pyext import _C
from pyext.onnx._values import Value, onnx_dtype, torch_dtype
from pyext.ops._einsum_modes import result_dtype


def einsum(
    equation: str,
    operands: Sequence[Value],
    alpha: float = 1,
    layout: str = "contiguous",
    accumulate_dtype: int | None = None,
    path: Sequence[int] | None = None,
) -> Value:
    """`layout` and `path` say how torch computes; the runtime chooses for itself."""
    like = [
        torch.empty((1,) * len(x.shape), dtype=torch_dtype(x.dtype), device="meta")
        for x in operands
    ]
    result = onnx_dtype(result_dtype(equation, like))
    dtype = _arithmetic(result if accumulate_dtype is None else ir.DataType(accumulate_dtype))
    factors = [op.Cast(x, to=dtype) for x in operands]
    product = op.Einsum(*factors, equation=_plain(equation, [x.dim() for x in like]))
    if alpha != 1:
        product = op.Mul(product, op.Constant(value=ir.tensor(alpha, dtype=dtype)))
    return op.Cast(product, to=result)


def _arithmetic(dtype: ir.DataType) -> ir.DataType:
    """The dtype to sum in: half types in float32, rounded once; integers modulo 2**64."""
    if not dtype.is_floating_point():
        return ir.DataType.INT64
    return ir.DataType.DOUBLE if dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT


def _plain(equation: str, ranks: list[int]) -> str:
    """The equation in ONNX's 52 letters, without an ellipsis."""
    inputs, output = _C.einsum_letters(equation, ranks)
    labels = list(dict.fromkeys("".join(inputs)))
    if len(labels) > len(string.ascii_letters):
        raise ValueError(f"einsum(): ONNX has 52 letters for {len(labels)} labels\n  {equation}")
    if len(set(output)) < len(output):
        raise ValueError(f"einsum(): in ONNX no label repeats in the output\n  {equation}")
    letters = str.maketrans(dict(zip(labels, string.ascii_letters, strict=False)))
    return f"{','.join(inputs)}->{output}".translate(letters)
