"""A cubic is fitted to the sine: gradients by hand, by autograd, by a Function, by nn and optim."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import Optimizer

from examples.programs import Result

STEPS = 150


def points() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-math.pi, math.pi, 500)
    return x, torch.sin(x)


def by_hand() -> Result:
    torch.manual_seed(0)
    x, y = points()
    a, b, c, d = torch.randn(4)
    losses = []
    for _ in range(STEPS):
        prediction = a + b * x + c * x**2 + d * x**3
        losses.append((prediction - y).square().sum())
        gradient = 2.0 * (prediction - y)
        a = a - 1e-6 * gradient.sum()
        b = b - 1e-6 * (gradient * x).sum()
        c = c - 1e-6 * (gradient * x**2).sum()
        d = d - 1e-6 * (gradient * x**3).sum()
    return Result(torch.stack(losses), prediction)


def by_autograd() -> Result:
    torch.manual_seed(0)
    x, y = points()
    weights = torch.randn(4, requires_grad=True)
    losses = []
    for _ in range(STEPS):
        prediction = torch.einsum("np,p->n", x[:, None] ** torch.arange(4), weights)
        loss = (prediction - y).square().sum()
        loss.backward()
        with torch.no_grad():
            weights -= 1e-6 * weights.grad
            weights.grad = None
        losses.append(loss.detach())
    return Result(torch.stack(losses), prediction.detach())


class Legendre3(torch.autograd.Function):
    """P3(x) = (5 x^3 - 3 x) / 2, with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return 0.5 * (5 * x**3 - 3 * x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * 1.5 * (5 * x**2 - 1)


def by_function() -> Result:
    x, y = points()
    weights = [torch.tensor(value, requires_grad=True) for value in (0.0, -1.0, 0.0, 0.3)]
    a, b, c, d = weights
    optimizer = torch.optim.Adam(weights, lr=5e-3)
    losses = []
    for _ in range(STEPS):
        prediction = a + b * Legendre3.apply(c + d * x)
        loss = (prediction - y).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return Result(torch.stack(losses), prediction.detach())


def warm_up(epoch: int) -> float:
    return min(1.0, (epoch + 1) / 10)


Schedule = Callable[[Optimizer], Any]
SCHEDULES: dict[str, Schedule] = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 30, gamma=0.5),
    "ExponentialLR chained": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.StepLR(optimizer, 40), lr_scheduler.ExponentialLR(optimizer, 0.98)]
    ),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=2),
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, warm_up),
}


def by_nn(schedule: Schedule) -> Result:
    """Adam with a closure, and a schedule of its learning rate."""
    torch.manual_seed(0)
    x, y = points()
    powers = x[:, None] ** torch.tensor([1, 2, 3])
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    scheduler = schedule(optimizer)
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(powers), y)
        loss.backward()
        return loss

    for _ in range(STEPS):
        loss = optimizer.step(closure).detach()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(loss)
        else:
            scheduler.step()
        losses.append(loss)
    return Result(torch.stack(losses), model(powers).detach())
