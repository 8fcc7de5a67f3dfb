"""ONNX: what the ops are in its operators, for :func:`torch.onnx.export`.

Needs onnx and onnxscript, which ``pip install 'pyext[onnx]'`` brings, together with ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["translations"]


def translations() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    r"""What each op is in ONNX operators, for ``custom_translation_table`` of the exporter.

    Covered are the ops of inference: :func:`pyext.einsum` and with it :func:`pyext.bilinear` and
    :func:`pyext.biaffine`, :func:`pyext.signed_sqrt`, :func:`pyext.bilinear_pool`,
    :func:`pyext.compact_bilinear_pool`, :func:`pyext.matrix_sqrt_pool`,
    :func:`pyext.cross_entropy` and :func:`pyext.mixup_cross_entropy`, with all their options, also
    for batches and positions of dynamic size. Half types are computed in float32 and rounded once,
    as by the ops themselves.

    ONNX says less than these ops in three places: complex tensors are refused; so is an einsum
    with more than 52 labels, or with one that repeats in the output; and a packed triangle or a
    square root of matrices needs a fixed number of channels.

    Returns:
        A table to be passed to :func:`torch.onnx.export` with ``dynamo=True``.

    Raises:
        ImportError: onnx or onnxscript is not installed.

    Example:
        >>> import torch, pyext
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), pyext.nn.BilinearPooling())
        >>> program = torch.onnx.export(
        ...     model.eval(),
        ...     (torch.rand(2, 3, 9, 9),),
        ...     dynamo=True,
        ...     verbose=False,
        ...     dynamic_shapes=({0: torch.export.Dim("batch")},),
        ...     custom_translation_table=pyext.onnx.translations(),
        ... )
        >>> print(program.model.graph.outputs[0].shape)
        [batch,8,8]
    """
    try:
        from pyext.onnx import _cross_entropy, _einsum, _pooling
    except ImportError as error:
        raise ImportError(
            f"pyext.onnx needs onnx and onnxscript ({error}): pip install 'pyext[onnx]'"
        ) from error
    ops = torch.ops.pyext
    return {
        ops.signed_sqrt.default: _pooling.signed_sqrt,
        ops.bilinear_pool.default: _pooling.bilinear_pool,
        ops.compact_bilinear_pool.default: _pooling.compact_bilinear_pool,
        ops.matrix_sqrt_pool.default: _pooling.matrix_sqrt_pool,
        ops.einsum.default: _einsum.einsum,
        ops.cross_entropy.default: _cross_entropy.cross_entropy,
    }
