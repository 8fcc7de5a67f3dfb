"""What the tests of Adam share: parameters, our optimizer beside torch's, a small model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyext

PAIRS = [(pyext.optim.Adam, torch.optim.Adam), (pyext.optim.AdamW, torch.optim.AdamW)]
each_class = pytest.mark.parametrize(("ours", "torchs"), PAIRS, ids=["Adam", "AdamW"])

# How far two ways may be apart that round differently: of ten steps over values near 1.
TOLERANCES = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-14},
    torch.complex128: {"rtol": 1e-12, "atol": 1e-14},
    torch.float32: {"rtol": 1e-6, "atol": 4e-7},
    torch.complex64: {"rtol": 1e-6, "atol": 4e-7},
}
EXACTLY = {"rtol": 0.0, "atol": 0.0}
SHAPES = [(7, 5), (33,), (), (0,), (2, 3, 4), (1,)]


def parameters(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> list[nn.Parameter]:
    """Random parameters of these shapes, or of SHAPES."""
    return [nn.Parameter(torch.randn(s, dtype=dtype, device=device)) for s in shapes or SHAPES]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters in the order of the groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def states_of(optimizer: torch.optim.Optimizer) -> dict[tuple[int, str], Any]:
    """Copies of all states, by place of the parameter and key."""
    return {
        (i, key): copy.deepcopy(value)
        for i, p in enumerate(parameters_of(optimizer))
        for key, value in optimizer.state.get(p, {}).items()
    }


def snapshot(optimizer: torch.optim.Optimizer) -> tuple[list[Tensor], dict[tuple[int, str], Any]]:
    """Copies of all parameters and states."""
    return [p.detach().clone() for p in parameters_of(optimizer)], states_of(optimizer)


def assert_same(actual: Any, expected: Any) -> None:
    """The two are equal to the last bit; a NaN equals a NaN."""
    torch.testing.assert_close(actual, expected, **EXACTLY, equal_nan=True)


def random_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, device=x.device)


class Twins:
    """The same parameters twice: ours are stepped by our optimizer, the others by torch's loop."""

    def __init__(
        self,
        ours: type[torch.optim.Optimizer],
        torchs: type[torch.optim.Optimizer],
        params: list[nn.Parameter],
        groups: Callable[[list[nn.Parameter]], Iterable[Any]] = list,
        *,
        extras: dict[str, Any] | None = None,  # what only our optimizer is told
        loop: dict[str, Any] | None = None,  # what only torch's is told
        **options: Any,
    ) -> None:
        others = copy.deepcopy(params)
        loop = loop or {"foreach": False, "fused": False}
        # A tensor among the options may be written to: each has its own.
        self.ours = ours(groups(params), **copy.deepcopy(options), **(extras or {}))
        self.torchs = torchs(groups(others), **copy.deepcopy(options), **loop)
        self.both = (self.ours, self.torchs)

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(parameters_of(self.ours), parameters_of(self.torchs), strict=True)

    def set_gradients(
        self, gradients: Iterable[Tensor] | None = None, missing: Iterable[int] = ()
    ) -> None:
        """Gives both the same gradients, random ones by default, but for `missing` parameters."""
        pairs = list(self.pairs())
        gradients = gradients or [random_like(p) for p, _ in pairs]
        for i, ((p, q), gradient) in enumerate(zip(pairs, gradients, strict=True)):
            p.grad = None if i in missing else gradient
            q.grad = None if i in missing else gradient.clone()

    def step(self, gradients: Iterable[Tensor] | None = None, missing: Iterable[int] = ()) -> None:
        self.set_gradients(gradients, missing)
        for optimizer in self.both:
            optimizer.step()

    def assert_equal(self, **tolerance: float) -> None:
        """Parameters, and every state that torch's optimizer has, are equal."""
        for i, (p, q) in enumerate(self.pairs()):
            close = tolerance or TOLERANCES[p.dtype]
            self._compare(p.detach(), q.detach(), close, f"parameter {i}")
            assert (p in self.ours.state) == (q in self.torchs.state), f"parameter {i}"
            for key, value in self.torchs.state.get(q, {}).items():
                actual = self.ours.state[p][key]
                self._compare(actual, value, close, f"{key} of parameter {i}")

    @staticmethod
    def _compare(actual: Tensor, expected: Tensor, close: dict[str, float], name: str) -> None:
        torch.testing.assert_close(
            actual, expected, **close, equal_nan=True, msg=lambda text: f"{name}: {text}"
        )

    def run(self, steps: int = 10, **tolerance: float) -> None:
        """Steps with random gradients, equal after each."""
        for _ in range(steps):
            self.step()
            self.assert_equal(**tolerance)


def mlp(dtype: torch.dtype = torch.float64, device: str = "cpu") -> nn.Sequential:
    """A small model, the same at every call."""
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    return model.to(device, dtype)


def batch(step: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Inputs and targets, the same for the same step."""
    generator = torch.Generator().manual_seed(step)
    values = torch.randn(8, 6 + 2, generator=generator, dtype=torch.float64)
    return values.to(device, dtype).split((6, 2), 1)


def loss_of(model: nn.Module, step: int) -> Tensor:
    first = next(model.parameters())
    x, y = batch(step, first.dtype, first.device)
    return (model(x) - y).square().mean()
