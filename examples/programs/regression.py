"""First models: logistic regression of two clouds, a network for two rings, a polynomial."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from examples.programs import Result


def train(model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        loss = criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def logistic_regression() -> Result:
    """Two Gaussian clouds."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(100, 2) + 1.5, torch.randn(100, 2) - 1.5])
    y = torch.cat([torch.ones(100), torch.zeros(100)])
    model = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0, 1))
    losses = train(model, nn.BCEWithLogitsLoss(), x, y, steps=100)
    return Result(losses, model(x) > 0)


def two_rings() -> Result:
    """A deep network tells an inner ring from an outer one."""
    torch.manual_seed(0)
    y = torch.arange(400) % 2
    radius, angle = 1 + y + 0.2 * torch.randn(400), 2 * math.pi * torch.rand(400)
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    model = nn.Sequential(
        nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)
    )
    losses = train(model, nn.CrossEntropyLoss(), x, y, steps=100)
    return Result(losses, model(x).argmax(1))


def polynomial() -> Result:
    """Coefficients are found again from noisy values."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 200)
    powers = torch.stack([x**power for power in range(1, 5)], dim=1)
    y = powers @ torch.tensor([0.9, -0.5, 3.0, 2.4]) + 0.3 + 0.1 * torch.randn(200)
    model = nn.Linear(4, 1)
    losses = train(model, nn.MSELoss(), powers, y[:, None], steps=150)
    return Result(losses, model(powers).detach().squeeze(1))
