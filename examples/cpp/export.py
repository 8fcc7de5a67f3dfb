"""Exports a model for exported.cpp: `python examples/cpp/export.py FOLDER`.

The folder gets `model.pt2`, compiled by AOTInductor, and arguments and results to compare with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

import pyext


class Network(torch.nn.Module):
    """Every pooling and layer of pyext on images, attention in einsum, and the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(3, 6, 3)
        self.pools = torch.nn.ModuleList(
            [
                pyext.nn.BilinearPooling(),
                pyext.nn.BilinearPooling(packed=True, center=True),
                pyext.nn.CompactBilinearPooling(6, output_dim=20),
                pyext.nn.MatrixSqrtPooling(),
            ]
        )
        self.heads = torch.nn.ModuleList(torch.nn.Linear(d, 5) for d in (36, 21, 20, 21))
        self.bilinear, self.biaffine = pyext.nn.Bilinear(5, 5, 5), pyext.nn.Biaffine(5, 5, 1)
        self.loss = pyext.nn.CrossEntropyLoss(torch.rand(5), label_smoothing=0.1, ignore_index=2)

    def forward(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images)
        scores = [
            head(pyext.signed_sqrt(pool(features).flatten(1)))
            for pool, head in zip(self.pools, self.heads, strict=True)
        ]
        x = torch.stack(scores, 1)
        attention = pyext.einsum("...qd,...kd->...qk", x, x).softmax(-1)
        x = pyext.einsum("...qk,...kd->...qd", attention, x)
        x = x + self.biaffine(x, x).squeeze(-1).sum(-1, keepdim=True)
        logits = self.bilinear(x[:, 0], x[:, 1])
        return logits, self.loss(logits, target)


def batch(n: int, side: int = 8) -> tuple[Tensor, Tensor]:
    """Images and their classes."""
    return torch.rand(n, 3, side, side), torch.arange(n) % 5


def main(folder: Path) -> None:
    torch.manual_seed(0)
    model = Network().eval()
    n = torch.export.Dim("n")
    program = torch.export.export(model, batch(2), dynamic_shapes=({0: n}, {0: n}))
    folder.mkdir(parents=True, exist_ok=True)
    torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/model.pt2")
    arguments = batch(5)
    torch.save(list(arguments), folder / "arguments.pt")
    with torch.no_grad():
        torch.save(list(model(*arguments)), folder / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
