"""Runs a sample, with derivatives, and says how far a result is from the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.entry import Sample


def outputs_of(result: Any) -> list[Tensor]:
    """The tensors of a result: one, or a tuple that may hold a named tuple."""
    return [x for x in tree_leaves(result) if isinstance(x, Tensor)]


def cotangents_for(outputs: list[Tensor], *, ones: bool = False) -> list[Tensor]:
    """Fixed cotangents, of few bits so that every dtype holds them exactly."""
    generator = torch.Generator().manual_seed(5)
    values = [torch.randint(-8, 9, x.shape, generator=generator) / 8 + 1 / 16 for x in outputs]
    return [
        torch.ones_like(x) if ones else value.to(x.device, x.dtype)
        for x, value in zip(outputs, values, strict=True)
    ]


def run(
    function: Callable[..., Any], sample: Sample, *, ones: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of a call and the gradients in `sample.grad`.

    The cotangents are 1 (what `loss.backward()` starts with) or mixed.
    """
    sample = sample.recording()
    outputs = outputs_of(function(*sample.args, **sample.kwargs))
    derived = [x for x in outputs if x.requires_grad]
    if not derived:
        return outputs, []
    gradients = torch.autograd.grad(
        derived,
        sample.leaves(),
        cotangents_for(derived, ones=ones),
        allow_unused=True,
        materialize_grads=True,
    )
    return [x.detach() for x in outputs], list(gradients)


def arithmetic_eps(dtype: torch.dtype) -> float:
    """Precision of the arithmetic that an op must use: float32 for half types, else its own."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def rounding(dtype: torch.dtype, values: Tensor) -> Tensor:
    """Half a unit in the last place of `values` in `dtype`: the error of rounding once."""
    info = torch.finfo(dtype)
    return (values.abs() * info.eps).clamp(min=info.smallest_normal * info.eps) / 2


def largest(values: Tensor) -> float:
    """The largest finite magnitude."""
    finite = values[values.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def errors(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> Tensor:
    """Distances from the float64 reference where that is finite.

    The unit is the last place, in `dtype`, of the largest value: how far from it a result may be
    that was rounded twice.
    """
    finite = expected.isfinite()
    unit = torch.finfo(dtype).eps * largest(expected)
    distance = (actual.double() - expected)[finite].abs().nan_to_num(nan=torch.inf)
    return torch.where(distance == 0, 0, distance / unit)


def assert_agrees(
    actual: Tensor, expected: Tensor, *, roundings: int = 1, summed: bool = False
) -> None:
    """Checks a result against the float64 reference.

    Allowed are `roundings` to the dtype of the result, 32 roundings of the arithmetic (float32 for
    half types) relative to each element, and 2 relative to the largest one, since sums are taken
    over all of them; twice that for float64, where the reference is no more exact. Where rounded
    numbers are `summed`, their roundings too are relative to the largest element. Infinities and
    NaNs stand where the reference has them.
    """
    assert actual.shape == expected.shape
    if not actual.is_floating_point():
        assert torch.equal(actual, expected)
        return
    expected = expected.double()
    limit = torch.finfo(actual.dtype).max
    expected = torch.where(expected.abs() > limit, expected * torch.inf, expected)
    finite = expected.isfinite()
    torch.testing.assert_close(
        actual[~finite].double(), expected[~finite], rtol=0, atol=0, equal_nan=True
    )
    eps = arithmetic_eps(actual.dtype)
    bound = 32 * eps * expected.abs() + 2 * eps * largest(expected)
    bound = bound * (2 if actual.dtype == torch.float64 else 1)
    rounded = torch.full_like(expected, largest(expected)) if summed else expected
    bound = bound + roundings * rounding(actual.dtype, rounded)
    wrong = (finite & ~((actual.double() - expected).abs() <= bound)).nonzero()
    if len(wrong):
        at = tuple(wrong[0].tolist())
        raise AssertionError(
            f"{len(wrong)} of {actual.numel()} are too far from the reference, the first at {at}: "
            f"{actual[at].item()!r}, expected {expected[at].item()!r} +- {bound[at].item():.2g}"
        )


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Checks that two results are equal to the last bit; a NaN equals a NaN."""
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
