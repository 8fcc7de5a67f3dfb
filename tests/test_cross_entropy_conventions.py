"""Every convention of smoothing gives what its users' own code gives, copied here literally."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyext


@pytest.fixture(params=[2, 5, 40])
def batch(request, device):
    c = request.param
    x = torch.randn(9, c, dtype=torch.float64, device=device, requires_grad=True)
    return x, torch.randint(c, (9,), device=device)


def agree(ours, theirs, x):
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, x)[0],
        torch.autograd.grad(theirs, x, retain_graph=True)[0],
        rtol=1e-9,
        atol=1e-12,
    )


EPSILONS = pytest.mark.parametrize("e", [0.0, 0.1, 0.5, 1.0])


@EPSILONS
def test_uniform_is_torch(batch, e):
    x, y = batch
    agree(pyext.cross_entropy(x, y, label_smoothing=e), F.cross_entropy(x, y, label_smoothing=e), x)


@EPSILONS
def test_uniform_is_timm(batch, e):
    """timm.loss.LabelSmoothingCrossEntropy."""
    x, y = batch
    log_probs = F.log_softmax(x, dim=-1)
    nll_loss = -log_probs.gather(dim=-1, index=y.unsqueeze(1)).squeeze(1)
    smooth_loss = -log_probs.mean(dim=-1)
    theirs = ((1.0 - e) * nll_loss + e * smooth_loss).mean()
    agree(pyext.cross_entropy(x, y, label_smoothing=e), theirs, x)


@EPSILONS
def test_others_is_the_recipe_in_the_loop(batch, e):
    """Fill with e/(C - 1), scatter 1 - e at the target, and take the divergence's constant off."""
    x, y = batch
    c = x.shape[1]
    with torch.no_grad():
        true_dist = torch.full_like(x, e / (c - 1))
        true_dist.scatter_(1, y.unsqueeze(1), 1.0 - e)
    theirs = torch.mean(torch.sum(-true_dist * F.log_softmax(x, dim=1), dim=1))
    agree(pyext.cross_entropy(x, y, label_smoothing=e, smoothing="others"), theirs, x)
    agree(pyext.nn.LabelSmoothingCrossEntropy(e)(x, y), theirs, x)


@EPSILONS
def test_others_is_megatron(batch, e):
    """megatron.core.tensor_parallel.vocab_parallel_cross_entropy."""
    x, y = batch
    vocab_size = x.shape[1]
    log_probs = F.log_softmax(x, dim=-1)
    loss = -log_probs.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    smoothing = e * vocab_size / (vocab_size - 1)
    mean_log_probs = log_probs.mean(dim=-1)
    theirs = ((1.0 - smoothing) * loss - smoothing * mean_log_probs).mean()
    agree(pyext.cross_entropy(x, y, label_smoothing=e, smoothing="others"), theirs, x)


class LSR(nn.Module):
    """The widely copied class: one-hot times (1 - e), plus e/(C - 1) on every class."""

    def __init__(self, e=0.1, reduction="mean"):
        super().__init__()
        self.log_softmax = nn.LogSoftmax(dim=1)
        self.e = e
        self.reduction = reduction

    def _one_hot(self, labels, classes, value=1):
        one_hot = torch.zeros(labels.size(0), classes, dtype=torch.float64, device=labels.device)
        labels = labels.view(labels.size(0), -1)
        value_added = torch.full_like(labels, value, dtype=torch.float64)
        one_hot.scatter_add_(1, labels, value_added)
        return one_hot

    def _smooth_label(self, target, length, smooth_factor):
        one_hot = self._one_hot(target, length, value=1 - smooth_factor)
        one_hot += smooth_factor / (length - 1)
        return one_hot

    def forward(self, x, target):
        smoothed_target = self._smooth_label(target, x.size(1), self.e)
        x = self.log_softmax(x)
        loss = torch.sum(-x * smoothed_target, dim=1)
        if self.reduction == "none":
            return loss
        return torch.sum(loss) if self.reduction == "sum" else torch.mean(loss)


@EPSILONS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_lsr_is_the_lsr_class(batch, e, reduction):
    x, y = batch
    theirs = LSR(e, reduction)(x, y)
    ours = pyext.cross_entropy(x, y, label_smoothing=e, smoothing="lsr", reduction=reduction)
    module = pyext.nn.LSR(e, reduction)(x, y)
    agree(ours.sum(), theirs.sum(), x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(module, theirs)


def test_a_prior_is_the_cross_entropy_with_it(batch):
    x, y = batch
    prior = torch.rand_like(x[0]).detach().softmax(0)
    t = 0.8 * F.one_hot(y, x.shape[1]).double() + 0.2 * prior
    agree(pyext.cross_entropy(x, y, label_smoothing=0.2, smoothing=prior), F.cross_entropy(x, t), x)


def test_a_uniform_prior_is_uniform(batch):
    x, y = batch
    prior = torch.full_like(x[0], 1 / x.shape[1]).detach()
    ours = pyext.cross_entropy(x, y, label_smoothing=0.2, smoothing=prior)
    agree(ours, pyext.cross_entropy(x, y, label_smoothing=0.2), x)


@pytest.mark.parametrize(
    ("smoothing", "on", "off"),
    [
        ("uniform", lambda e, c: 1 - e + e / c, lambda e, c: e / c),
        ("others", lambda e, c: 1 - e, lambda e, c: e / (c - 1)),
        ("lsr", lambda e, c: 1 - e + e / (c - 1), lambda e, c: e / (c - 1)),
    ],
)
def test_the_masses_of_the_table(batch, smoothing, on, off):
    """They can be read off the gradient at equal logits: T / C less the mass of the class."""
    x, y = batch
    n, c = x.shape
    e = 0.3
    zeros = torch.zeros_like(x, requires_grad=True)
    options = {"label_smoothing": e, "smoothing": smoothing, "reduction": "sum"}
    pyext.cross_entropy(zeros, y, **options).backward()
    masses = torch.full_like(x, off(e, c)).detach()
    masses[torch.arange(n), y] = on(e, c)
    total = on(e, c) + (c - 1) * off(e, c)
    torch.testing.assert_close(zeros.grad, total / c - masses, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("smoothing", ["uniform", "others", "lsr"])
def test_no_smoothing_is_plain_cross_entropy_also_with_infinite_logits(device, smoothing):
    x = torch.randn(5, 6, dtype=torch.float64, device=device)
    x[:, 4] = -torch.inf
    x.requires_grad_()
    y = torch.tensor([0, 1, 2, 3, 5], device=device)
    agree(pyext.cross_entropy(x, y, smoothing=smoothing), F.cross_entropy(x, y), x)
    each = torch.zeros(5, dtype=torch.float64, device=device)
    rows = pyext.cross_entropy(x, y, smoothing=smoothing, label_smoothing=each)
    agree(rows, F.cross_entropy(x, y), x)


def test_one_epsilon_per_sample_is_one_call_per_sample(batch):
    x, y = batch
    each = torch.linspace(0, 1, len(x), dtype=torch.float64, device=x.device)
    for smoothing in ("uniform", "others", "lsr"):
        ours = pyext.cross_entropy(
            x, y, label_smoothing=each, smoothing=smoothing, reduction="none"
        )
        singly = [
            pyext.cross_entropy(row, target, label_smoothing=e.item(), smoothing=smoothing)
            for row, target, e in zip(x, y, each, strict=True)
        ]
        torch.testing.assert_close(ours, torch.stack(singly), rtol=1e-12, atol=1e-14)
