"""Pooling layers: second moments of features over positions.

TorchScript knows neither the keyword-only arguments of the functions nor the names of overloads: a
module that it compiles calls the op.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyext.ops._pooling import of_positions
from pyext.ops.bilinear_pool import bilinear_pool, check_normalize
from pyext.ops.compact_bilinear_pool import TensorSketch, compact_bilinear_pool, tensor_sketch
from pyext.ops.matrix_sqrt_pool import matrix_sqrt_pool

__all__ = ["BilinearPooling", "CompactBilinearPooling", "MatrixSqrtPooling"]


class BilinearPooling(torch.nn.Module):
    """Bilinear pooling of feature maps, by :func:`pyext.bilinear_pool`.

    Args:
        scale: see :func:`pyext.bilinear_pool`, like all arguments.
        eps: see :func:`pyext.bilinear_pool`.
        normalize: see :func:`pyext.bilinear_pool`.
        packed: see :func:`pyext.bilinear_pool`.
        center: see :func:`pyext.bilinear_pool`.

    Example:
        >>> import torch, pyext
        >>> pool = pyext.nn.BilinearPooling(packed=True)
        >>> pool(torch.rand(8, 64, 7, 7)).shape
        torch.Size([8, 2080])
    """

    def __init__(
        self,
        *,
        scale: float | None = None,
        eps: float = 1e-5,
        normalize: Sequence[str] = ("signed_sqrt", "l2"),
        packed: bool = False,
        center: bool = False,
    ) -> None:
        super().__init__()
        check_normalize(normalize)
        self.scale = scale
        self.eps = eps
        self.normalize = tuple(normalize)
        self.packed = packed
        self.center = center

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        r"""The pooled features of ``x`` (N, D1, \*), with itself or with ``y`` (N, D2, \*)."""
        if torch.jit.is_scripting():
            x, y = of_positions("bilinear_pool", x, y)
            return torch.ops.pyext.bilinear_pool(
                x,
                y,
                scale=self.scale,
                eps=self.eps,
                signed_sqrt="signed_sqrt" in self.normalize,
                l2="l2" in self.normalize,
                packed=self.packed,
                center=self.center,
            )[0]
        return bilinear_pool(
            x,
            y,
            scale=self.scale,
            eps=self.eps,
            normalize=self.normalize,
            packed=self.packed,
            center=self.center,
        )

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"scale={self.scale}, eps={self.eps}, normalize={self.normalize}, "
            f"packed={self.packed}, center={self.center}"
        )


class MatrixSqrtPooling(torch.nn.Module):
    """The square root of the covariance of feature maps, by :func:`pyext.matrix_sqrt_pool`.

    Args:
        iterations: see :func:`pyext.matrix_sqrt_pool`.
        packed: see :func:`pyext.matrix_sqrt_pool`.

    Example:
        >>> import torch, pyext
        >>> pool = pyext.nn.MatrixSqrtPooling()
        >>> pool(torch.rand(8, 64, 7, 7)).shape
        torch.Size([8, 2080])
    """

    def __init__(self, iterations: int = 5, *, packed: bool = True) -> None:
        super().__init__()
        self.iterations = iterations
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        r"""The pooled features of ``x`` (N, D, \*)."""
        if torch.jit.is_scripting():
            x, _ = of_positions("matrix_sqrt_pool", x)
            return torch.ops.pyext.matrix_sqrt_pool(x, self.iterations, self.packed)
        return matrix_sqrt_pool(x, self.iterations, packed=self.packed)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"iterations={self.iterations}, packed={self.packed}"


class CompactBilinearPooling(torch.nn.Module):
    """Compact bilinear pooling of feature maps, by :func:`pyext.compact_bilinear_pool`.

    The sketches are buffers: they are part of the state dict and move with the module.

    Args:
        in1_features: channels of the first input.
        in2_features: channels of the second; by default as many.
        output_dim: length of the sketch.
        seed: from which the sketches are drawn.
        device: where the buffers live.

    Example:
        >>> import torch, pyext
        >>> pool = pyext.nn.CompactBilinearPooling(64, output_dim=1000)
        >>> pool(torch.rand(8, 64, 7, 7)).shape
        torch.Size([8, 1000])
    """

    def __init__(
        self,
        in1_features: int,
        in2_features: int | None = None,
        output_dim: int = 8192,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in1_features = in1_features
        self.in2_features = in1_features if in2_features is None else in2_features
        self.output_dim = output_dim
        self.seed = seed
        self.hash1: Tensor  # here and not in the class, where TorchScript would read strings
        self.sign1: Tensor
        self.hash2: Tensor
        self.sign2: Tensor
        sketch = tensor_sketch(in1_features, in2_features, output_dim, seed=seed, device=device)
        for name, values in sketch._asdict().items():
            self.register_buffer(name, values.clone())  # each with memory of its own

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        r"""The pooled features of ``x`` (N, D1, \*), with itself or with ``y`` (N, D2, \*)."""
        if torch.jit.is_scripting():
            x, y = of_positions("compact_bilinear_pool", x, y)
            return torch.ops.pyext.compact_bilinear_pool(
                x, y, self.hash1, self.sign1, self.hash2, self.sign2, self.output_dim
            )
        sketch = TensorSketch(self.hash1, self.sign1, self.hash2, self.sign2)
        return compact_bilinear_pool(x, y, self.output_dim, sketch=sketch)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"in1_features={self.in1_features}, in2_features={self.in2_features}, "
            f"output_dim={self.output_dim}, seed={self.seed}"
        )
