"""The next word: a small transformer on the help texts that come with Python.

`pydoc_data.topics` is the text behind `help("for")`: some 80 articles of English with bits of
grammar. Every tenth is held out. The vocabulary is every word and mark of the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

from examples.demo.ops import Ops
from examples.demo.task import LABEL_SMOOTHING, Call, Task

BATCH = 32
CONTEXT = 64
WIDTH = 128
HEADS = 4
LAYERS = 2
SCORES, MIX = "bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd"  # the two contractions of attention
UNKNOWN = "<unknown>"


class Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each added to its input."""

    def __init__(self, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.perceptron = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, (N, CONTEXT, HEADS, WIDTH / HEADS)."""
        return self.qkv(x).unflatten(2, (3, HEADS, WIDTH // HEADS)).unbind(2)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """How much each word takes from those before it, (N, HEADS, CONTEXT, CONTEXT)."""
        scores = self.ops.einsum(SCORES, q, k) / math.sqrt(q.size(-1))
        future = torch.ones(q.size(1), q.size(1), dtype=torch.bool).triu(1)
        return scores.masked_fill(future, -torch.inf).softmax(-1)

    def attention(self, x: Tensor) -> Tensor:
        """Written in einsum; (N, CONTEXT, WIDTH) to the same."""
        q, k, v = self.heads(x)
        return self.out(self.ops.einsum(MIX, self.weights(q, k), v).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.perceptron(self.norms[1](x))


class Network(nn.Module):
    """Word indices (N, CONTEXT) to logits of the next word (N * CONTEXT, vocabulary)."""

    def __init__(self, vocabulary: int, ops: Ops) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, WIDTH)
        self.places = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block(ops) for _ in range(LAYERS)), nn.LayerNorm(WIDTH))
        self.next_word = nn.Linear(WIDTH, vocabulary)
        nn.init.normal_(self.words.weight, std=0.05)

    def embedded(self, words: Tensor) -> Tensor:
        """What the first block is given, (N, CONTEXT, WIDTH)."""
        return self.words(words) + self.places

    def forward(self, words: Tensor) -> Tensor:
        return self.next_word(self.blocks(self.embedded(words))).flatten(0, 1)


class Language(Task):
    """Which word comes next?"""

    name = "language"
    metric = "perplexity"
    steps = 150
    learning_rate = 3e-3

    def __init__(self) -> None:
        articles = [_words(topics[name]) for name in sorted(topics)]
        held_out = [word for article in articles[::10] for word in article]
        train = [word for index, one in enumerate(articles) if index % 10 for word in one]
        self.vocabulary = {UNKNOWN: 0}
        for word in train:
            self.vocabulary.setdefault(word, len(self.vocabulary))
        self.train, self.held_out = self._indices(train), self._indices(held_out)
        self.about = (
            f"{len(train):,} words, {len(held_out):,} held out, vocabulary of "
            f"{len(self.vocabulary):,}, batches of {BATCH} x {CONTEXT}"
        )

    def _indices(self, words: list[str]) -> Tensor:
        return torch.tensor([self.vocabulary.get(word, 0) for word in words])

    def model(self, ops: Ops) -> nn.Module:
        return Network(len(self.vocabulary), ops)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        places = torch.arange(CONTEXT)
        while True:
            starts = torch.randint(len(self.train) - CONTEXT, (BATCH, 1), generator=generator)
            yield self.train[starts + places], self.train[starts + places + 1].flatten()

    def evaluate(self, model: nn.Module, ops: Ops) -> float:
        pieces = (len(self.held_out) - 1) // CONTEXT
        words = self.held_out[: pieces * CONTEXT].view(pieces, CONTEXT)
        following = self.held_out[1 : pieces * CONTEXT + 1].view(pieces, CONTEXT)
        total = sum(
            float(ops.cross_entropy(model(inputs), target.flatten(), reduction="sum"))
            for inputs, target in zip(words.split(BATCH), following.split(BATCH), strict=True)
        )
        return math.exp(total / words.numel())

    def calls(self, model: nn.Module, inputs: Tensor, target: Tensor) -> list[Call]:
        assert isinstance(model, Network)
        block = model.blocks[0]
        assert isinstance(block, Block)
        with torch.no_grad():
            logits = model(inputs)
            q, k, v = block.heads(block.norms[0](model.embedded(inputs)))
            weights = block.weights(q, k)
        return [
            Call(
                f"cross_entropy {logits.size(0):,} x {logits.size(1):,}",
                (logits, target),
                lambda ops, x, y: ops.cross_entropy(x, y, label_smoothing=LABEL_SMOOTHING),
            ),
            Call(f"einsum {SCORES}", (q, k), lambda ops, x, y: ops.einsum(SCORES, x, y)),
            Call(f"einsum {MIX}", (weights, v), lambda ops, x, y: ops.einsum(MIX, x, y)),
        ]


def _words(text: str) -> list[str]:
    """Words, numbers, and single marks."""
    return re.findall(r"[A-Za-z]+|\d+|[^\sA-Za-z\d]", text)
