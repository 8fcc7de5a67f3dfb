"""How DTensor may spread a call of an op over devices, so that none needs what another has.

Each function here yields, from the arguments of an op by name, the ways to cut a call: the axis
along which each of its results is cut, and then each of its tensors. None stands for a tensor that
is whole on every device, "sum" for a result that is the sum of what the devices have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
from torch.distributed.tensor.experimental import register_sharding
from torch.utils._pytree import tree_leaves

from pyext import _C
from pyext.ops._arguments import by_name

Axes = list[Any]
Way = tuple[Axes, Axes]


def register(op: torch._ops.OpOverload, ways: Callable[..., Iterator[Way]]) -> None:
    """Registers the ways to cut a call, and the one that cuts nothing.

    Then once more, because torch remembers its decision by tensors and integers alone, whereas
    shapes here depend on equations, bools and strings too.
    """

    @register_sharding(op)
    def _(*values: Any, **keywords: Any) -> list[tuple[list[Placement], list[Placement]]]:
        given = by_name(op, values, keywords)
        arguments = {x.name: given[x.name] for x in op._schema.arguments}  # in their order
        tensors = [x for x in tree_leaves(arguments) if hasattr(x, "placements")]
        whole: Way = [None] * len(op._schema.returns), [None] * len(tensors)
        return [
            ([_placement(axis) for axis in results], [_placement(axis) for axis in inputs])
            for results, inputs in (whole, *ways(**arguments))
        ]

    propagator = DTensor._op_dispatcher.sharding_propagator
    keywords = [argument.name for argument in op._schema.arguments if argument.kwarg_only]
    decided_by = RuntimeSchemaInfo(0, keywords, needs_pytree=True)
    propagator.register_op_strategy(op, propagator.op_strategy_funcs[op], decided_by)


def _placement(axis: int | str | None) -> Placement:
    if axis is None:
        return Replicate()
    return Partial(axis) if isinstance(axis, str) else Shard(axis)


def _pointwise(self: Any, eps: float) -> Iterator[Way]:
    for axis in range(self.ndim):
        yield [axis], [axis]


def _pointwise_backward(grad: Any, result: Any) -> Iterator[Way]:
    for axis in range(result.ndim):
        yield [axis], [axis, axis]


def _samples(**arguments: Any) -> Iterator[Way]:
    """A pooling: every tensor and every result has one value per sample, but for sketches."""
    shared = ("hash1", "sign1", "hash2", "sign2")
    inputs = [
        None if name in shared else 0 for name, x in arguments.items() if hasattr(x, "placements")
    ]
    yield [0], inputs


def _samples_with_norm(**arguments: Any) -> Iterator[Way]:
    for _, inputs in _samples(**arguments):
        yield [0, 0], inputs


def _samples_backward(y: Any, **arguments: Any) -> Iterator[Way]:
    """The gradient of an input that is not given is empty."""
    for _, inputs in _samples(y=y, **arguments):
        yield [0, None if y is None else 0], inputs


def _rows(input: Any, reduction: str, return_stats: bool, **arguments: Any) -> Iterator[Way]:
    """Rows of logits; a mean over them counts them all."""
    if input.ndim < 2 or reduction == "mean":
        return
    stats = 0 if return_stats else None
    loss = "sum" if reduction == "sum" else 0
    yield [loss, 0, stats, stats, stats, stats], [0, *_of_rows(arguments, stats)]


def _rows_backward(
    grad_loss: Any,
    grad_lse: Any,
    grad_entropy: Any,
    input: Any,
    reduction: str,
    return_stats: bool,
    **arguments: Any,
) -> Iterator[Way]:
    if input.ndim < 2 or reduction == "mean":
        return
    gradients = [
        axis
        for x, axis in ((grad_loss, None if reduction == "sum" else 0), (grad_lse, 0))
        if x is not None
    ]
    gradients += [] if grad_entropy is None else [0]
    yield [0], [*gradients, 0, *_of_rows(arguments, 0 if return_stats else None)]


def _of_rows(arguments: dict[str, Any], stats: int | None) -> Axes:
    axes = {"weight": None, "prior": None, "entropy": stats}
    return [axes.get(name, 0) for name, x in arguments.items() if hasattr(x, "placements")]


def _labels(equation: str, operands: list[Any], **options: Any) -> Iterator[Way]:
    """Any label that is once in an operand: a result has it, or is a sum over it."""
    inputs, output = _C.einsum_letters(equation, [x.ndim for x in operands])
    for label in dict.fromkeys("".join(inputs)):
        if any(labels.count(label) > 1 for labels in (*inputs, output)):
            continue
        axes: Axes = [labels.index(label) if label in labels else None for labels in inputs]
        for i, x in enumerate(operands):
            if axes[i] is not None and x.shape[axes[i]] == 1:
                axes[i] = None  # it broadcasts
        if any(axis is not None for axis in axes):
            yield [output.index(label) if label in output else "sum"], axes


_ops = torch.ops.pyext
register(_ops.signed_sqrt.default, _pointwise)
register(_ops.signed_sqrt_.default, _pointwise)
register(_ops.signed_sqrt_backward.default, _pointwise_backward)
register(_ops.bilinear_pool.default, _samples_with_norm)
register(_ops.bilinear_pool_backward.default, _samples_backward)
register(_ops.compact_bilinear_pool.default, _samples)
register(_ops.compact_bilinear_pool_backward.default, _samples_backward)
register(_ops.matrix_sqrt_pool.default, _samples)
register(_ops.matrix_sqrt_pool_backward.default, _samples)
register(_ops.cross_entropy.default, _rows)
register(_ops.cross_entropy_backward.default, _rows_backward)
register(_ops.einsum.default, _labels)
