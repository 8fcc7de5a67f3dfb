"""Bilinear models of the digits: pooled products of features, and bilinear heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.programs import Result
from examples.programs.digits import CLASSES, train

CHANNELS = 32


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, CHANNELS, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
    )


class BilinearPooling(nn.Module):
    """(N, D, H, W) to (N, D, D): products of features, signed roots, and the 2-norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        products = torch.bmm(x, x.transpose(1, 2)) / x.size(2)
        roots = torch.sign(products) * torch.sqrt(products.abs() + 1e-5)
        return F.normalize(roots.flatten(1)).view_as(products)


def pooled(pooling: type[nn.Module] = BilinearPooling) -> Result:
    """The bilinear CNN of Lin, RoyChowdhury and Maji 2015."""
    torch.manual_seed(0)
    head = nn.Linear(CHANNELS * CHANNELS, CLASSES)
    return train(nn.Sequential(convolutions(), pooling(), nn.Flatten(), head))


class BilinearHead(nn.Module):
    """Rows of the image against its columns, by a full form for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.features = convolutions()
        self.classify = nn.Bilinear(CHANNELS * 2, CHANNELS * 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classify(x.mean(2)[..., :2].flatten(1), x.mean(3)[..., :2].flatten(1))


class FactorisedHead(nn.Module):
    """A form of low rank for each class: products of projections."""

    def __init__(self, rank: int = 16) -> None:
        super().__init__()
        self.features = convolutions()
        self.first = nn.Linear(CHANNELS * 2, rank)
        self.second = nn.Linear(CHANNELS * 2, rank)
        self.classify = nn.Parameter(torch.randn(CLASSES, rank) / rank)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        first = self.first(x.mean(2)[..., :2].flatten(1))
        second = self.second(x.mean(3)[..., :2].flatten(1))
        return torch.einsum("nr,nr,cr->nc", first, second, self.classify)


def full_head() -> Result:
    torch.manual_seed(0)
    return train(BilinearHead())


def factorised_head() -> Result:
    torch.manual_seed(0)
    return train(FactorisedHead())
