"""Whole training steps under `torch.compile(fullgraph=True)`: model and loss; optimizer outside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import pyext

pytestmark = pytest.mark.once

CLASSES = 7


class BilinearCNN(nn.Module):
    """Convolutions, bilinear pooling and a bilinear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.pool = pyext.nn.BilinearPooling(packed=True)
        self.sketch = pyext.nn.CompactBilinearPooling(6, output_dim=12)
        self.head = pyext.nn.Bilinear(21, 12, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)
        return self.head(self.pool(features), pyext.signed_sqrt(self.sketch(features)))

    @staticmethod
    def batch(n: int) -> tuple[Tensor, Tensor]:
        return torch.rand(n, 1, 8, 8), torch.randint(CLASSES, (n,))


class LanguageModel(nn.Module):
    """One block of causal attention in einsum, and the next token's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 16)
        self.qkv = nn.Parameter(torch.randn(3, 16, 2, 8) / 4)
        self.out = nn.Parameter(torch.randn(2, 8, 16) / 4)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        q, k, v = pyext.einsum("btd,ndhe->nbthe", x, self.qkv).unbind()
        scores = pyext.einsum("bqhe,bkhe->bhqk", q, k, alpha=8**-0.5)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        x = x + pyext.einsum("bhqk,bkhe,hed->bqd", weights, v, self.out)
        return self.head(x).mT

    @staticmethod
    def batch(n: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(CLASSES, (n, 11))
        return tokens[:, :-1], tokens[:, 1:]


def losses_and_weights(model: nn.Module, sizes: list[int], compiler=lambda f: f):
    """Trains a copy of the model; the losses of all steps, and the weights after them."""
    torch.manual_seed(1)
    model = copy.deepcopy(model)
    criterion = pyext.nn.CrossEntropyLoss(label_smoothing=0.1, z_loss=1e-3)
    optimizer = pyext.optim.AdamW(model.parameters(), lr=1e-2)
    step = compiler(lambda x, y: criterion(model(x), y))
    losses = []
    for n in sizes:
        optimizer.zero_grad()
        loss = step(*model.batch(n))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), list(model.state_dict().values())


@pytest.fixture(autouse=True)
def _compiled_afresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", [BilinearCNN, LanguageModel])
def test_one_graph_for_a_step_and_one_more_for_any_batch(kind):
    torch.manual_seed(0)
    model, compiler, counts = kind(), CompileCounterWithBackend("aot_eager"), []

    def counted(step):
        compiled = torch.compile(step, fullgraph=True, backend=compiler)

        def counting(*batch):
            loss = compiled(*batch)
            counts.append(compiler.frame_count)
            return loss

        return counting

    sizes = [6, 6, 6, 4, 9, 5, 13]
    actual = losses_and_weights(model, sizes, counted)
    torch.testing.assert_close(actual, losses_and_weights(model, sizes), rtol=1e-5, atol=1e-6)
    assert counts == [1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("kind", [BilinearCNN, LanguageModel])
def test_inductor_trains_as_eager_does(kind):
    torch.manual_seed(0)
    model, sizes = kind(), [6] * 4
    actual = losses_and_weights(model, sizes, lambda step: torch.compile(step, fullgraph=True))
    torch.testing.assert_close(actual, losses_and_weights(model, sizes), rtol=1e-4, atol=1e-5)
