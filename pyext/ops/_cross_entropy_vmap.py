"""Batching rules of cross_entropy: what `torch.func.vmap` runs in place of one call per example.

The rows of a call do not know of each other, so a batch of examples becomes one call with more rows
and without reduction; each example is reduced afterwards.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyext.ops._arguments import by_name

_FORWARD = torch.ops.pyext.cross_entropy.default
_BACKWARD = torch.ops.pyext.cross_entropy_backward.default

# What holds one value per row, or per logit. All else is shared by the rows of a call.
_OF_ROWS = ("input", "target", "row_smoothing", "grad_lse", "grad_entropy", "normalizer", "entropy")


class _Batch:
    """A call of an op on a batch of examples."""

    def __init__(
        self, op: Any, size: int, in_dims: tuple[Any, ...], values: tuple[Any, ...], keywords: Any
    ) -> None:
        self.op = op
        self.size = size
        self.arguments = by_name(op, values, keywords)
        dims = by_name(op, in_dims, {})
        batched = [a.name for a in op._schema.arguments][: len(in_dims)]
        self.dims: dict[str, int] = {name: dims[name] for name in batched if dims[name] is not None}
        example = self.batch_first("input").shape[1:]
        self.row_shape = example[:1] + example[2:] if len(example) > 1 else example[:0]

    def folds(self) -> bool:
        """Whether the rows of all examples may share a call.

        They may not with a weight or a prior of each example's own, nor with mixup, where the means
        over the two targets have different denominators.
        """
        return self.arguments["target_b"] is None and self.dims.keys() <= {*_OF_ROWS, "grad_loss"}

    def one_by_one(self) -> list[Any]:
        """The results of a call per example."""
        results = []
        for i in range(self.size):
            example = {name: self.arguments[name].select(dim, i) for name, dim in self.dims.items()}
            results.append(self.op(**(self.arguments | example)))
        return results

    def folded(self, **cotangents: Tensor | None) -> Any:
        """The result of one call, without reduction, on the rows of all examples."""
        arguments = self.arguments | {"reduction": "none", "out_dtype": None} | cotangents
        for name in _OF_ROWS:
            if arguments.get(name) is not None:
                arguments[name] = self.fold(self.batch_first(name))
        return self.op(**arguments)

    def batch_first(self, name: str) -> Tensor:
        """An argument with the batch as its first axis; without a copy where examples share it."""
        value: Tensor = self.arguments[name]
        if name in self.dims:
            return value.movedim(self.dims[name], 0)
        return value.expand(self.size, *value.shape)

    def fold(self, x: Tensor) -> Tensor:
        """(batch, N, ...) to (batch * N, ...). Examples of shape (C) are rows already."""
        return x.flatten(0, 1) if self.row_shape else x

    def unfold(self, x: Tensor) -> Tensor:
        """The inverse of `fold`."""
        return x.unflatten(0, (self.size, self.row_shape[0])) if self.row_shape else x

    def per_example(self, rows: Tensor) -> Tensor:
        """(batch, N, ...) to (batch, values)."""
        return rows.reshape(self.size, math.prod(self.row_shape))

    def denominators(self) -> Tensor | int:
        """What the sums over the rows of each example are divided by."""
        if self.arguments["reduction"] != "mean":
            return 1
        target, weight = self.batch_first("target"), self.arguments["weight"]
        if target.is_floating_point():
            return math.prod(self.row_shape)
        counted = target != self.arguments["ignore_index"]
        if weight is None:
            return self.per_example(counted).sum(1)
        weights = weight.to(torch.promote_types(weight.dtype, torch.float32))
        weights = weights[torch.where(counted, target, 0).long()]
        return self.per_example(torch.where(counted, weights, 0)).sum(1)


@torch.library.register_vmap("pyext::cross_entropy")
def _(
    info: Any, in_dims: tuple[Any, ...], *values: Any, **keywords: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    batch = _Batch(_FORWARD, info.batch_size, in_dims, values, keywords)
    if not batch.folds():
        outputs = [torch.stack(examples) for examples in zip(*batch.one_by_one(), strict=True)]
        return tuple(outputs), (0,) * len(outputs)
    losses, normalizer, *stats = batch.folded()
    loss = batch.unfold(losses)
    if batch.arguments["reduction"] != "none":
        loss = batch.per_example(loss).sum(1) / batch.denominators()
    loss = loss.to(batch.arguments["out_dtype"] or loss.dtype)
    if batch.arguments["return_stats"]:
        stats = [batch.unfold(x) for x in stats]
    dim = 0 if batch.arguments["return_stats"] else None
    return (loss, batch.unfold(normalizer), *stats), (0, 0, *[dim] * len(stats))


@torch.library.register_vmap("pyext::cross_entropy_backward")
def _(info: Any, in_dims: tuple[Any, ...], *values: Any, **keywords: Any) -> tuple[Tensor, int]:
    batch = _Batch(_BACKWARD, info.batch_size, in_dims, values, keywords)
    if not batch.folds():
        return torch.stack(batch.one_by_one()), 0
    grad_loss = None
    if batch.arguments["grad_loss"] is not None:
        grad_loss = batch.batch_first("grad_loss")
        if batch.arguments["reduction"] != "none":
            shape = batch.row_shape
            of_examples = grad_loss / batch.denominators()
            grad_loss = of_examples.view(-1, *[1] * len(shape)).expand(-1, *shape)
        grad_loss = batch.fold(grad_loss)
    return batch.unfold(batch.folded(grad_loss=grad_loss)), 0
