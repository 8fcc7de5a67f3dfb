"""cross_entropy in ONNX operators, with the masses of all classes written out.

The classes are moved to the last axis; what is one number per row keeps that axis, of size 1.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir
from onnxscript import opset18 as op

from pyext.onnx._values import Arithmetic, Value, integers, size


class _Logits(NamedTuple):
    """Logits after scaling and capping, and what the softmax knows of them."""

    z: Value
    log_p: Value
    lse: Value
    normalizer: Value


class _Rows(NamedTuple):
    """For each row: its loss, what it counts for in the mean, and log p of its target."""

    loss: Value
    weight: Value
    expected: Value


def cross_entropy(
    input: Value,
    target: Value,
    weight: Value = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    row_smoothing: Value = None,
    prior: Value = None,
    target_b: Value = None,
    lam: float = 1.0,
    row_lam: Value = None,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    masked: bool = False,
    validate: bool = False,
    return_stats: bool = False,
    out_dtype: int | None = None,
) -> tuple[Value, ...]:
    """The op of csrc/schemas.cpp; a class index out of range makes the loss of its row NaN."""
    loss = _Loss(input)
    logits = loss.logits(input, logit_scale, softcap)
    e = loss.per_row(row_smoothing, label_smoothing)
    peak, off = loss.masses(logits.z, e, smoothing, prior, masked)
    weights = loss.one if weight is None else loss.of(weight)

    def rows(target: Value) -> _Rows:
        q, kept = loss.distribution(logits.z, target, ignore_index)
        mass = op.Where(kept, weights * (peak * q + off), loss.zero)
        each = loss.zero - loss.summed(loss.taken(mass, logits.log_p))
        each = each + loss.taken(loss.of(kept) * loss.constant(z_loss), logits.lse * logits.lse)
        known = op.Or(op.Not(kept), loss.summed(q) > loss.zero)
        counted = op.Where(kept, loss.summed(weights * q), loss.zero)
        if target.dtype.is_floating_point():
            known, counted = kept, loss.of(kept)
        each = op.Where(known, each, loss.constant(float("nan")))
        expected = op.Where(kept, loss.summed(loss.taken(q, logits.log_p)), loss.zero)
        return _Rows(each, counted, expected)

    def reduced(rows: _Rows, share: Value) -> Value:
        each = loss.taken(share, rows.loss)
        if reduction == "none":
            return op.Squeeze(each, integers([-1]))
        result = op.ReduceSum(each, keepdims=0)
        return result / op.ReduceSum(rows.weight, keepdims=0) if reduction == "mean" else result

    first = rows(target)
    result, expected = reduced(first, loss.one), first.expected
    if target_b is not None:
        second, share = rows(target_b), loss.per_row(row_lam, lam)
        result = reduced(first, share) + reduced(second, loss.one - share)
        expected = share * expected + (loss.one - share) * second.expected
    result = op.Cast(result, to=loss.dtype if out_dtype is None else out_dtype)
    return (result, logits.normalizer, *loss.statistics(logits, expected, return_stats))


class _Loss(Arithmetic):
    """The parts of the loss, in the dtype in which it is computed."""

    def __init__(self, input: Value) -> None:
        super().__init__(input.dtype)
        self.rank = len(input.shape)
        self.axis = self.rank - 1  # of the classes, once they are moved
        self.zero, self.one = self.constant(0.0), self.constant(1.0)

    def logits(self, input: Value, logit_scale: float, softcap: float | None) -> _Logits:
        z = self._classes_last(input) * self.constant(logit_scale)
        if softcap is not None:
            z = op.Tanh(z / self.constant(softcap)) * self.constant(softcap)
        largest = op.ReduceMax(z, integers([-1]), keepdims=1)
        largest = op.Where(op.IsInf(largest, detect_positive=0), self.zero, largest)
        total = self.summed(op.Exp(z - largest))
        log_p = z - largest - op.Log(total)
        return _Logits(z, log_p, largest + op.Log(total), op.Concat(largest, total, axis=-1))

    def masses(
        self, z: Value, e: Value, smoothing: str, prior: Value, masked: bool
    ) -> tuple[Value, Value]:
        """What the target has more than the others, and what every class has."""
        if masked:
            sharing = self.of(z > self.constant(-float("inf")))
        else:
            sharing = op.Expand(self.one, op.Shape(z))
        if smoothing == "prior":
            sharing = sharing * self.of(prior)
            return self.one - e, e * (sharing / self.summed(sharing) if masked else sharing)
        sharers = self.summed(sharing)
        off = e / (sharers if smoothing == "uniform" else sharers - self.one)
        return self.one - e - off if smoothing == "others" else self.one - e, off * sharing

    def distribution(self, z: Value, target: Value, ignore_index: int) -> tuple[Value, Value]:
        """The target's probabilities, and which rows are not ignored."""
        if target.dtype.is_floating_point():
            rows = op.Shape(self.summed(z))
            return self._classes_last(target), op.Expand(op.Equal(self.one, self.one), rows)
        y = op.Unsqueeze(op.Cast(target, to=ir.DataType.INT64), integers([-1]))
        kept = op.Not(op.Equal(y, integers([ignore_index])))
        classes = op.Squeeze(size(z, self.axis), integers([0]))
        zero, one = (op.Squeeze(integers([n]), integers([0])) for n in (0, 1))
        return self.of(op.Equal(y, op.Range(zero, classes, one))), kept

    def statistics(self, logits: _Logits, expected: Value, wanted: bool) -> list[Value]:
        """lse, entropy, target_log_prob and argmax of each row; empty if they are not wanted."""
        if not wanted:
            empty = self.zeros(integers([0]))
            return [empty, empty, empty, op.Cast(empty, to=ir.DataType.INT64)]
        entropy = self.zero - self.summed(self.taken(op.Exp(logits.log_p), logits.log_p))
        rows = [op.Squeeze(x, integers([-1])) for x in (logits.lse, entropy, expected)]
        return [*rows, op.ArgMax(logits.z, axis=-1, keepdims=0)]

    def per_row(self, values: Value, fixed: float) -> Value:
        """A number, or one for each sample or row."""
        if values is None:
            return self.constant(fixed)
        axes = list(range(len(values.shape), self.rank))
        return op.Unsqueeze(self.of(values), integers(axes))

    def summed(self, x: Value) -> Value:
        return op.ReduceSum(x, integers([-1]), keepdims=1)

    def taken(self, mass: Value, value: Value) -> Value:
        """A mass of 0 takes nothing, also from an infinite value."""
        return op.Where(op.Equal(mass, self.zero), self.zero, mass * value)

    def _classes_last(self, x: Value) -> Value:
        x = self.of(x)
        return x if self.rank < 3 else op.Transpose(x, perm=[0, *range(2, self.rank), 1])
