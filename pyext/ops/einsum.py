"""Einsum-style contractions: any sum of products of tensors that an equation can say."""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from typing import Any

import opt_einsum
import torch
from torch import Tensor

from pyext import _C
from pyext.ops import _einsum_modes  # noqa: F401  registers fake kernels and the batching rule
from pyext.ops._einsum_path import Path, flat_path

__all__ = ["EinsumPlan", "einsum", "einsum_plan"]


def einsum(
    equation: str | Tensor,
    *operands: Any,
    out: Tensor | None = None,
    alpha: complex = 1,
    beta: complex = 0,
    accumulate_dtype: torch.dtype | None = None,
    layout: str = "contiguous",
    path: Path | None = None,
) -> Tensor:
    r"""Sums the products of the elements of the operands along dimensions named by an equation.

    A drop-in for :func:`torch.einsum` that neither permutes nor copies its operands: what has no
    matrix product in it is one pass over memory, everything else is multiplied tile by tile from
    the strides the tensors have. It computes ``alpha * sum + beta * out``.

    Beyond :func:`torch.einsum` it takes ``out`` with any strides, labels that repeat in the output
    (``"i->ii"`` makes a diagonal matrix), any letter of Unicode and any number in the sublist form
    as a label, operands of different dtypes, and integers and bool everywhere.

    Args:
        equation: subscripts of the operands, separated by commas, and of the result after ``->``;
            without it, the labels that appear once, in the alphabet's order. ``...`` stands for
            dimensions that broadcast. Or the first operand of the sublist form
            ``einsum(x, [0, 1], y, [1, 2], [0, 2])``.
        operands: the tensors, or one list of them. A dimension of size 1 broadcasts.
        out: the tensor to write, of the shape and dtype of the result; it may not overlap an
            operand.
        alpha: factor of the sum.
        beta: factor of ``out``, which is not read when it is 0.
        accumulate_dtype: dtype to sum in; by default float32 for float16 and bfloat16, which are
            rounded once, at the end, and otherwise the dtype of the result.
        layout: "contiguous", or "any" for the strides that the operands' order suggests.
        path: groups of operands to contract, as :func:`numpy.einsum_path` and ``opt_einsum`` give
            them. By default all orders of three operands are compared, and ``opt_einsum`` looks
            for the cheapest of more.

    Returns:
        The result, a view where no element is multiplied or added (``"ij->ji"``, ``"ii->i"``), a
        tensor of its own otherwise. Its dtype is that of :func:`torch.result_type` over the
        operands; integers wrap around. One tensor of integers or bool that is only summed gives
        int64, as :func:`torch.sum`; products of bool tensors give bool.

    Raises:
        RuntimeError: the equation does not fit the operands, or ``out`` does not fit the result.
            The message shows the place.
        ValueError: no operand, ``beta`` without ``out``, or factors that the dtype cannot hold.

    Source:
        :func:`torch.einsum`; Springer and Bientinesi, "Design of a high-performance GEMM-like
        tensor-tensor multiplication" (arXiv 1607.00145).

    Example:
        >>> import torch, pyext
        >>> x = torch.arange(6.0).reshape(2, 3)
        >>> pyext.einsum("ij,kj->ik", x, x)
        tensor([[ 5., 14.],
                [14., 50.]])
        >>> pyext.einsum("ij,ij->i", x, x)
        tensor([ 5., 50.])
    """
    equation, tensors = as_equation(equation, *operands)
    if not tensors:
        raise ValueError(f"einsum(): must provide at least one operand\n  {equation}")
    pairs = flat_path(path, equation, tensors)
    if out is not None:
        return torch.ops.pyext.einsum.out(
            equation,
            tensors,
            alpha=alpha,
            beta=beta,
            accumulate_dtype=accumulate_dtype,
            path=pairs,
            out=out,
        )
    if beta != 0:
        raise ValueError(f"einsum(): beta={beta} scales out, which was not given\n  {equation}")
    if len(tensors) == 1 and alpha == 1 and layout == "contiguous":
        view = _viewed(equation, tensors[0])
        if view is not None:
            return view
    if (
        pairs is None
        and alpha == 1
        and accumulate_dtype is None
        and layout == "contiguous"
        and not torch.compiler.is_dynamo_compiling()
        and not torch.overrides.has_torch_function(tensors)
    ):
        return _C.einsum(equation, tensors)
    return torch.ops.pyext.einsum.default(
        equation,
        tensors,
        alpha=alpha,
        layout=layout,
        accumulate_dtype=accumulate_dtype,
        path=pairs,
    )


class EinsumPlan:
    """How an einsum of tensors like these is computed; made by :func:`einsum_plan`.

    ``print`` shows the order of the contractions, the kernel of each, and the time it should take
    beside the least that memory and arithmetic allow.

    Attributes:
        equation: the equation.
        path: pairs of positions that are contracted, empty if the plan chooses.
        flops: additions and multiplications.
        bytes: bytes that the steps read and write.
        peak_bytes: bytes of memory allocated at one time, the result included.

    Example:
        >>> import pyext
        >>> print(pyext.einsum_plan("ij,ij->i", (1000, 100), (1000, 100)))
        ij,ij->i
        2e+05 flop, 8.04e+05 bytes moved, at most 4000 bytes allocated
        step                         kernel                Mflop         MB floor (us) expected (us)
        ij,ij->i                     multiply-reduce       0.200      0.804      16.08         23.13
    """

    def __init__(
        self, equation: str, operands: Sequence[Tensor], path: list[int], **options: Any
    ) -> None:
        self.equation = equation
        self.path = path
        self._options = options
        self._shapes = [tuple(x.shape) for x in operands]
        self._plan = _C.einsum_plan(equation, operands, path=path, **options)
        self.flops = self._plan.flops
        self.bytes = self._plan.bytes
        self.peak_bytes = self._plan.peak_bytes

    def __call__(self, *operands: Tensor, out: Tensor | None = None) -> Tensor:
        """The einsum of operands of the planned shapes."""
        shapes = [tuple(x.shape) for x in operands]
        if shapes != self._shapes:
            raise ValueError(
                f"einsum(): the plan is for shapes {self._shapes}, got {shapes}\n  {self.equation}"
            )
        pairs = list(zip(self.path[::2], self.path[1::2], strict=True)) or None
        return einsum(self.equation, *operands, out=out, path=pairs, **self._options)

    def __str__(self) -> str:
        return str(self._plan).rstrip()


def einsum_plan(
    equation: str,
    *operands: Tensor | Sequence[int],
    dtype: torch.dtype | None = None,
    accumulate_dtype: torch.dtype | None = None,
    layout: str = "contiguous",
    path: Path | None = None,
) -> EinsumPlan:
    """Plans an einsum for tensors like the given ones, or for contiguous ones of given shapes.

    Args:
        equation: as for :func:`einsum`.
        operands: tensors or shapes.
        dtype: of operands that are given as shapes; torch's default dtype if None.
        accumulate_dtype: as for :func:`einsum`.
        layout: as for :func:`einsum`.
        path: as for :func:`einsum`.

    Returns:
        The plan, to be printed, or called with operands of these shapes.

    Raises:
        RuntimeError: the equation does not fit the operands.

    Example:
        >>> import torch, pyext
        >>> shapes = (512, 32), (32, 512), (512, 32), (32, 8)
        >>> plan = pyext.einsum_plan("ij,jk,kl,lm->im", *shapes)
        >>> plan.path
        [2, 3, 1, 2, 0, 1]
        >>> plan(*map(torch.randn, shapes)).shape
        torch.Size([512, 8])
    """
    tensors = [
        x if isinstance(x, Tensor) else torch.empty(tuple(x), dtype=dtype, device="meta")
        for x in operands
    ]
    pairs = flat_path(path, equation, tensors) or []
    return EinsumPlan(equation, tensors, pairs, accumulate_dtype=accumulate_dtype, layout=layout)


def as_equation(*arguments: Any) -> tuple[str, Sequence[Tensor]]:
    """Equation and operands, of the form ``x, [0, 1], y, [1, 2], [0, 2]`` too."""
    first, *operands = arguments
    if isinstance(first, str):
        is_list = len(operands) == 1 and isinstance(operands[0], (list, tuple))
        return first, operands[0] if is_list else operands
    terms = [_letters(labels) for labels in arguments[1::2]]
    equation = ",".join(terms)
    if len(arguments) % 2:
        equation += "->" + _letters(arguments[-1])
    return equation, arguments[: len(terms) * 2 : 2]


def _letters(labels: Sequence[Any]) -> str:
    text = ""
    for label in labels:
        if label is ...:
            text += "..."
        elif isinstance(label, int) and label >= 0:
            # Letters in the order of the numbers, which is that of an implicit output.
            text += string.ascii_letters.swapcase()[label : label + 1] or opt_einsum.get_symbol(
                label
            )
        else:
            raise ValueError(f"einsum(): expected numbers from 0 on as subscripts, got {label!r}")
    return text


View = tuple[list[tuple[int, int]], list[int]]


@torch.compiler.assume_constant_result
def _view(equation: str, rank: int) -> View | None:
    """The diagonals and the permutation that an expression of one operand is, if it is only that.

    ``torch.diagonal`` puts its result last; diagonals and permutation count on that.
    """
    return _cached_view(equation, rank)


@functools.lru_cache(maxsize=4096)
def _cached_view(equation: str, rank: int) -> View | None:
    (letters,), output = _C.einsum_letters(equation, [rank])
    if set(letters) != set(output) or len(set(output)) != len(output):
        return None
    diagonals = []
    while len(set(letters)) < len(letters):
        label = next(x for x in letters if letters.count(x) > 1)
        first = letters.index(label)
        second = letters.index(label, first + 1)
        diagonals.append((first, second))
        letters = letters[:first] + letters[first + 1 : second] + letters[second + 1 :] + label
    return diagonals, [letters.index(label) for label in output]


def _viewed(equation: str, x: Tensor) -> Tensor | None:
    """The view that an expression of one operand is; None if it sums, or does not fit."""
    view = _view(equation, x.dim())
    if view is None:
        return None
    diagonals, permutation = view
    for first, second in diagonals:
        if x.shape[first] != x.shape[second]:
            return None
        x = x.diagonal(0, first, second)
    return x.permute(permutation)
