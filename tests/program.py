"""Many calls of a function as one program, for what takes a second to compile or to export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tests.entry import Sample
from tests.measure import outputs_of


class Program(torch.nn.Module):
    """Takes the tensors of all samples, and gives the results of all calls."""

    def __init__(self, function: Callable[..., Any], samples: Sequence[Sample]) -> None:
        super().__init__()
        self.function, self.samples = function, samples

    def tensors(self) -> tuple[Tensor, ...]:
        """The arguments of the program."""
        return tuple(x for sample in self.samples for x in sample.tensors())

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        following = iter(tensors)
        results = []
        for sample in self.samples:
            args, kwargs = tree_map_only(
                Tensor, lambda _: next(following), (sample.args, sample.kwargs)
            )
            results += outputs_of(self.function(*args, **kwargs))
        return tuple(results)
