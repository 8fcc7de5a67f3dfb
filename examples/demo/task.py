"""What a task of the demo is, and how it is trained with each bundle of ops."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks import timing
from examples.demo.ops import Ops

LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class Call:
    """An op of the task, on tensors of the run itself.

    Attributes:
        name: the op and its sizes.
        inputs: those of real numbers require gradients.
        run: calls the op of a bundle.
    """

    name: str
    inputs: tuple[Tensor, ...]
    run: Callable[..., Tensor]


class Task(ABC):
    """A model, its data, and what counts as good."""

    name: str
    about: str
    metric: str
    steps: int
    learning_rate: float

    @abstractmethod
    def model(self, ops: Ops) -> nn.Module:
        """A fresh model that maps inputs to logits (N, classes)."""

    @abstractmethod
    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches of inputs and class indices (N), the same ones in every call."""

    @abstractmethod
    def evaluate(self, model: nn.Module, ops: Ops) -> float:
        """The metric on held-out data."""

    @abstractmethod
    def calls(self, model: nn.Module, inputs: Tensor, target: Tensor) -> list[Call]:
        """The ops in which the bundles differ, as the trained model calls them."""


@dataclass
class Trace:
    """One training: a loss and a time for each step, and the metric at the end."""

    ops: Ops
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    metric: float = float("nan")

    @property
    def seconds_per_step(self) -> float:
        """The median."""
        return median(self.seconds)

    @property
    def final_loss(self) -> float:
        """Over the last tenth of the steps: a single batch says little."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)


@dataclass(frozen=True)
class Comparison:
    """What one task gave: a trace per bundle, and the times of single ops in seconds."""

    task: Task
    traces: list[Trace]
    op_seconds: dict[str, list[float]]


def train(task: Task, bundles: tuple[Ops, ...], on_step: Callable[[str], object]) -> Comparison:
    """Trains the task with every bundle.

    They start from the same parameters, see the same batches, and take turns step by step: when the
    machine is busy it is busy for all of them.
    """
    models, optimizers, traces = [], [], [Trace(ops) for ops in bundles]
    for ops in bundles:
        torch.manual_seed(0)
        models.append(task.model(ops))
        parameters = models[-1].parameters()
        optimizers.append(ops.optimizer(parameters, lr=task.learning_rate))
    batches = task.batches()
    order = list(range(len(bundles)))
    for _ in range(task.steps):
        inputs, target = next(batches)
        for index in order:
            start = time.perf_counter()
            optimizers[index].zero_grad()
            logits = models[index](inputs)
            cross_entropy = bundles[index].cross_entropy
            loss = cross_entropy(logits, target, label_smoothing=LABEL_SMOOTHING)
            loss.backward()
            optimizers[index].step()
            traces[index].losses.append(loss.item())
            traces[index].seconds.append(time.perf_counter() - start)
            del logits, loss  # their memory is not the next one's to free
        order.reverse()
        on_step(" ".join(f"{trace.ops.name} {trace.losses[-1]:.3f}" for trace in traces))
    with torch.inference_mode():
        for model, trace in zip(models, traces, strict=True):
            trace.metric = task.evaluate(model.eval(), trace.ops)
    calls = task.calls(models[-1], inputs, target)
    return Comparison(task, traces, {call.name: _time(call, bundles) for call in calls})


def _time(call: Call, bundles: tuple[Ops, ...]) -> list[float]:
    """Seconds of a forward and a backward pass of one op, for each bundle."""

    def step(ops: Ops) -> Callable[[], None]:
        inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in call.inputs]
        cotangent = torch.ones_like(call.run(ops, *inputs))

        def forward_backward() -> None:
            for leaf in inputs:
                leaf.grad = None
            call.run(ops, *inputs).backward(cotangent)

        return forward_backward

    timings = timing.interleaved({ops.name: step(ops) for ops in bundles}, seconds=1.5)
    return [timings[ops.name].median for ops in bundles]
