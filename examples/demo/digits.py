"""Handwritten digits: a bilinear CNN.

The images are the 1,797 of scikit-learn's `load_digits`. Convolutions make the features; products
of each two, averaged over the image, rooted and normed, tell the digit, as in Lin, RoyChowdhury and
Maji 2015.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from examples.demo.ops import Ops
from examples.demo.task import LABEL_SMOOTHING, Call, Task

BATCH = 128
CHANNELS = 128
CLASSES = 10


class Network(nn.Module):
    """Images (N, 1, 8, 8) to logits (N, 10)."""

    def __init__(self, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, CHANNELS, 3, padding=1, stride=2),
            nn.BatchNorm2d(CHANNELS),
        )
        self.classify = nn.Linear(CHANNELS * CHANNELS, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.ops.bilinear_pool(self.features(images)).flatten(1))


class Digits(Task):
    """Which digit is it?"""

    name = "digits"
    metric = "accuracy"
    steps = 120
    learning_rate = 2e-3

    def __init__(self) -> None:
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(digits.target)
        train, held_out = train_test_split(
            range(len(labels)), test_size=0.25, random_state=0, stratify=labels
        )
        self.images, self.labels = images[train], labels[train]
        self.held_out = images[held_out], labels[held_out]
        self.about = f"{len(train):,} images, {len(held_out)} held out, batches of {BATCH}"

    def model(self, ops: Ops) -> nn.Module:
        return Network(ops)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        while True:
            order = torch.randperm(len(self.labels), generator=generator)
            for batch in order.split(BATCH)[:-1]:  # the last one is smaller
                yield self.images[batch], self.labels[batch]

    def evaluate(self, model: nn.Module, _: Ops) -> float:
        images, labels = self.held_out
        return float((model(images).argmax(1) == labels).float().mean())

    def calls(self, model: nn.Module, inputs: Tensor, target: Tensor) -> list[Call]:
        assert isinstance(model, Network)
        with torch.no_grad():
            features, logits = model.features(inputs), model(inputs)
        return [
            Call(
                f"cross_entropy {len(logits)} x {CLASSES}",
                (logits, target),
                lambda ops, x, y: ops.cross_entropy(x, y, label_smoothing=LABEL_SMOOTHING),
            ),
            Call(
                f"bilinear_pool {' x '.join(map(str, features.shape))}",
                (features,),
                lambda ops, x: ops.bilinear_pool(x),
            ),
        ]
