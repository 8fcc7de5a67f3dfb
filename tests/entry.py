"""What the suite knows of an op: an `Entry` in `tests/samples/<op>.py` feeds every check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Sample:
    """One call. Its tensors are shared by all tests: take a `copy()` to write into them."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    grad: tuple[int | str, ...] = (0,)  # the arguments in which to differentiate
    rows: bool = True  # whether tensors whose first axis is as long as the first one's may grow

    def map(self, change: Callable[[Tensor], Tensor]) -> Sample:
        """The sample with every tensor changed."""
        args, kwargs = tree_map_only(Tensor, change, (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs)

    def as_double(self) -> Sample:
        """The same values in the precision of the reference."""
        return self.map(lambda x: x.double() if x.is_floating_point() else x)

    def copy(self) -> Sample:
        """Fresh memory, the same strides."""
        return self.map(copied)

    def recording(self) -> Sample:
        """The sample with leaves, of the same memory, that require a gradient."""
        sample = self
        for place, leaf in zip(self.grad, self.leaves(), strict=True):
            sample = sample.replacing(place, leaf.detach().requires_grad_())
        return sample

    def replacing(self, place: int | str, value: Any) -> Sample:
        """The sample with another argument at a place."""
        if isinstance(place, str):
            return replace(self, kwargs={**self.kwargs, place: value})
        return replace(self, args=(*self.args[:place], value, *self.args[place + 1 :]))

    def leaves(self) -> list[Tensor]:
        """The arguments in which to differentiate."""
        return [self.args[p] if isinstance(p, int) else self.kwargs[p] for p in self.grad]

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [x for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor)]


@dataclass(frozen=True)
class BadCall:
    """A call that must raise `error` with a message that matches `message`."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    error: type[Exception] | tuple[type[Exception], ...]
    message: str


class Maker:
    """Makes tensors of one device and dtype, the same ones in every run."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(20160117)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal values, rounded to the dtype."""
        x = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return self.tensor(x * scale)

    def uniform(self, *shape: int) -> Tensor:
        """Values in [0, 1)."""
        return self.tensor(torch.rand(shape, generator=self._generator, dtype=torch.float64))

    def probabilities(self, *shape: int, axis: int = 1) -> Tensor:
        """Values whose sum over `axis` is 1."""
        x = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return self.tensor(x.softmax(axis))

    def tensor(self, values: Any) -> Tensor:
        """The given values."""
        return torch.as_tensor(values).to(self.device, self.dtype)

    def indices(self, classes: int, *shape: int) -> Tensor:
        """Integers in [0, classes)."""
        return torch.randint(classes, shape, generator=self._generator).to(self.device)

    def index_tensor(self, values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        """The given integers."""
        return torch.as_tensor(values, dtype=dtype).to(self.device)


@dataclass(frozen=True)
class Entry:
    """An op, as the checks see it.

    Attributes:
        op: its name in torch.ops.pyext, without `_`, `.out` and `_backward`.
        function: the public function.
        reference: the same call in float64 by plain torch, from the formula and not the kernel.
        native: what a user would write with torch's own ops; answers NotImplemented to what those
            cannot express.
        samples: shapes, strides and edge values, for each dtype.
        small_samples: every option, in float64, small enough for numerical derivatives.
        large_samples: large enough for several threads to take part.
        bad_calls: what must raise, and how.
        in_place: the public in-place function, if the op has one.
        has_out: whether the public function takes `out=`; with `in_place` too the op is pointwise,
            and resizes and casts as torch's pointwise ops do.
        extra_bytes: the memory budget of forward and backward of a sample, beyond its arguments.
        saved_bytes: what may be kept from forward to backward of it, beyond arguments and results.
        has_derivative: whether the op has one; else `grad` of its samples is empty.
        saves_result: whether the derivative is taken from the result instead of the input.
        sums_result: whether it then sums over the elements of the result.
    """

    op: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    native: Callable[..., Any]
    samples: Callable[[Maker], Iterator[Sample]]
    small_samples: Callable[[Maker], Iterator[Sample]]
    large_samples: Callable[[Maker], Iterator[Sample]]
    bad_calls: Callable[[Maker], Iterator[BadCall]]
    extra_bytes: Callable[[Sample], int]
    saved_bytes: Callable[[Sample], int]
    in_place: Callable[..., Tensor] | None = None
    has_out: bool = False
    has_derivative: bool = True
    saves_result: bool = False
    sums_result: bool = False

    @property
    def name(self) -> str:
        """The name of the public function."""
        return self.function.__name__


def copied(x: Tensor) -> Tensor:
    """A copy in fresh memory with the strides and the offset of x."""
    storage = x.untyped_storage().clone()
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        storage, x.storage_offset(), x.size(), x.stride()
    )
