"""Attention written in einsum learns to find the token that comes after a marked one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from examples.programs import Result

TOKENS, LENGTH, WIDTH, HEADS = 16, 24, 64, 4
STEPS, BATCH = 25, 64


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS + 1, WIDTH)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) / WIDTH)
        self.weights = nn.ParameterList(
            torch.randn(WIDTH, HEADS, WIDTH // HEADS) / math.sqrt(WIDTH) for _ in range(4)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.classify = nn.Linear(WIDTH, TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token indices (N, LENGTH) to logits (N, TOKENS)."""
        x = self.embed(tokens) + self.places
        q, k, v = (torch.einsum("blw,whd->blhd", x, weight) for weight in self.weights[:3])
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(WIDTH // HEADS)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        x = self.norm(x + torch.einsum("blhd,whd->blw", mixed, self.weights[3]))
        return self.classify(x.mean(1))


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(TOKENS, (BATCH, LENGTH), generator=generator)
    places = torch.randint(LENGTH - 1, (BATCH,), generator=generator)
    rows = torch.arange(BATCH)
    target = tokens[rows, places + 1]
    tokens[rows, places] = TOKENS  # the mark
    return tokens, target


def attention() -> Result:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    losses = []
    for _ in range(STEPS):
        tokens, target = batch(generator)
        loss = criterion(model(tokens), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        tokens, _ = batch(generator)
        return Result(torch.stack(losses), model(tokens).argmax(1))
