"""Handwritten digits: a perceptron and a CNN, and what recipes add to the training loop.

The images are the 1,797 of scikit-learn's `load_digits`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from examples.programs import Result

BATCH, STEPS = 64, 20
HELD_OUT = 297
CLASSES = 10


read = functools.cache(load_digits)


def images() -> tuple[Tensor, Tensor]:
    """All images (N, 1, 8, 8) and their digits (N)."""
    digits = read()
    x = torch.tensor(digits.images, dtype=torch.get_default_dtype())
    return x.unsqueeze(1) / 16, torch.tensor(digits.target)


def batches(epochs: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = images()
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        order = torch.randperm(len(y) - HELD_OUT, generator=generator)
        for batch in order.split(BATCH)[:STEPS]:
            yield x[batch], y[batch]


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def cnn() -> nn.Sequential:
    """Two layers of convolution with batch norm, and a linear head."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    return nn.Sequential(body, nn.Linear(128, CLASSES))


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def train(
    model: nn.Module,
    loss_of: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    max_norm: float | None = None,
    accumulate: int = 1,
) -> Result:
    criterion = nn.CrossEntropyLoss()
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for step, (x, y) in enumerate(batches(), start=1):
        loss = loss_of(model, x, y) if loss_of else criterion(model(x), y)
        (loss / accumulate).backward()
        losses.append(loss.detach())
        if step % accumulate:
            continue
        if max_norm:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        return Result(torch.stack(losses), model(images()[0][-HELD_OUT:]).argmax(1))


def plain_perceptron() -> Result:
    return train(perceptron())


def plain_cnn() -> Result:
    return train(cnn())


# ---- label smoothing, in the three ways that are copied ----


class LSR(nn.Module):
    """One-hot targets, smoothed: as a module."""

    def __init__(self, e: float = 0.1) -> None:
        super().__init__()
        self.log_softmax = nn.LogSoftmax(dim=1)
        self.e = e

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        one_hot = F.one_hot(target, x.size(1)).to(x.dtype)
        smooth = one_hot * (1 - self.e) + self.e / (x.size(1) - 1)
        return -(smooth * self.log_softmax(x)).sum(dim=1).mean()


def smoothing_by_a_class(kind: Callable[[], nn.Module] = LSR) -> Result:
    criterion = kind()
    return train(cnn(), lambda model, x, y: criterion(model(x), y))


def smoothing_in_the_loop() -> Result:
    def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        labels = torch.full((len(y), CLASSES), 0.1 / (CLASSES - 1))
        labels.scatter_(1, y[:, None], 0.9)
        log_probabilities = F.log_softmax(model(x), dim=1)
        return -(log_probabilities * labels).sum() / len(y)

    return train(cnn(), loss_of)


def smoothing_by_the_argument() -> Result:
    return train(cnn(), lambda model, x, y: F.cross_entropy(model(x), y, label_smoothing=0.1))


# ---- what else stands in training loops ----


def mixup() -> Result:
    generator = torch.Generator().manual_seed(2)

    def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        share = float(torch.rand((), generator=generator))
        other = torch.randperm(len(y), generator=generator)
        logits = model(share * x + (1 - share) * x[other])
        return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[other])

    return train(cnn(), loss_of)


def l1_penalty() -> Result:
    def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        penalty = torch.stack([p.abs().sum() for p in model.parameters()]).sum()
        return F.cross_entropy(model(x), y) + 1e-4 * penalty

    return train(cnn(), loss_of)


def no_decay_on_biases() -> Result:
    model = cnn()
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": weights, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0}]
    return train(model, optimizer=torch.optim.AdamW(groups, lr=2e-3))


def clipped_gradients() -> Result:
    return train(cnn(), max_norm=0.5)


def accumulated_gradients() -> Result:
    return train(cnn(), accumulate=4)


def two_learning_rates() -> Result:
    model = cnn()
    body, head = model
    groups = [{"params": body.parameters(), "lr": 5e-4}, {"params": head.parameters()}]
    return train(model, optimizer=torch.optim.Adam(groups, lr=2e-3))


def frozen_body() -> Result:
    model = cnn()
    body, head = model
    body.requires_grad_(False)
    return train(model, optimizer=torch.optim.Adam(head.parameters(), lr=1e-2))
