"""What cross_entropy adds to torch's: z-loss, scaled and capped logits, masks, statistics."""

import math

import pytest
import torch
import torch.nn.functional as F

import pyext

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
INF = math.inf


@pytest.fixture(params=[6, 50])
def batch(request, device):
    c = request.param
    x = torch.randn(11, c, dtype=torch.float64, device=device, requires_grad=True)
    return x, torch.randint(c, (11,), device=device)


def agree(ours, theirs, x):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), x, retain_graph=True)[0],
        torch.autograd.grad(theirs.sum(), x, retain_graph=True)[0],
        rtol=1e-9,
        atol=1e-12,
    )


def reduced(rows, reduction):
    return rows if reduction == "none" else getattr(rows, reduction)()


@REDUCTIONS
def test_z_loss_is_added_to_every_row(batch, reduction):
    x, y = batch
    rows = F.cross_entropy(x, y, reduction="none") + 0.01 * x.logsumexp(1) ** 2
    ours = pyext.cross_entropy(x, y, reduction=reduction, z_loss=0.01)
    agree(ours, reduced(rows, reduction), x)


@REDUCTIONS
def test_z_loss_leaves_ignored_rows_out(batch, reduction):
    x, y = batch
    y[::2] = -100
    rows = F.cross_entropy(x, y, reduction="none")
    rows = rows + 0.01 * (y != -100).double() * x.logsumexp(1) ** 2
    theirs = rows.sum() / (y != -100).sum() if reduction == "mean" else reduced(rows, reduction)
    agree(pyext.cross_entropy(x, y, reduction=reduction, z_loss=0.01), theirs, x)


def test_logit_scale(batch):
    x, y = batch
    for scale in (0.1, 3.0, -2.0, 0.0):
        ours = pyext.cross_entropy(x, y, logit_scale=scale, label_smoothing=0.1)
        agree(ours, F.cross_entropy(x * scale, y, label_smoothing=0.1), x)


def test_softcap_is_after_the_scale(batch):
    x, y = batch
    capped = 5.0 * torch.tanh(2.0 * x / 5.0)
    ours = pyext.cross_entropy(x, y, logit_scale=2.0, softcap=5.0, label_smoothing=0.1)
    agree(ours, F.cross_entropy(capped, y, label_smoothing=0.1), x)


def test_softcap_makes_infinite_logits_finite(device):
    x = torch.tensor([[INF, -INF, 0.0]], device=device, requires_grad=True)
    loss = pyext.cross_entropy(x, torch.tensor([1], device=device), softcap=2.0)
    expected = F.cross_entropy(torch.tensor([[2.0, -2.0, 0.0]]), torch.tensor([1]))
    torch.testing.assert_close(loss.cpu(), expected)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient[0, :2].tolist() == [0, 0]


@pytest.mark.parametrize("c", [6, 50])
def test_minus_infinity_is_a_class_that_cannot_be(device, c):
    """Without smoothing the loss is finite, and the gradient there is 0."""
    x = torch.randn(5, c, dtype=torch.float64, device=device)
    x[:, 3:] = -INF
    x.requires_grad_()
    y = torch.tensor([0, 1, 2, 1, 0], device=device)
    loss = pyext.cross_entropy(x, y)
    agree(loss, F.cross_entropy(x, y), x)
    assert (torch.autograd.grad(loss, x)[0][:, 3:] == 0).all()


def test_minus_infinity_with_smoothing_is_infinite_as_in_torch(device):
    x = torch.tensor([[1.0, 2.0, -INF]], device=device)
    y = torch.tensor([0], device=device)
    assert F.cross_entropy(x, y, label_smoothing=0.1) == INF
    for smoothing in ("uniform", "others", "lsr"):
        assert pyext.cross_entropy(x, y, label_smoothing=0.1, smoothing=smoothing) == INF


@pytest.mark.parametrize("smoothing", ["uniform", "others", "lsr"])
@pytest.mark.parametrize("c", [6, 50])
def test_masked_is_the_loss_over_the_finite_classes(device, smoothing, c):
    finite = torch.arange(c, device=device) % 3 != 2
    x = torch.randn(5, c, dtype=torch.float64, device=device)
    x = torch.where(finite, x, -INF).requires_grad_()
    y = torch.tensor([0, 1, 3, 1, 4], device=device)
    among_finite = torch.tensor([0, 1, 2, 1, 3], device=device)
    options = {"label_smoothing": 0.2, "smoothing": smoothing}
    ours = pyext.cross_entropy(x, y, masked=True, **options)
    agree(ours, pyext.cross_entropy(x[:, finite], among_finite, **options), x)
    assert (torch.autograd.grad(ours, x)[0][:, ~finite] == 0).all()


def test_masks_may_differ_from_row_to_row(device):
    x = torch.tensor([[1.0, -INF, 2.0], [1.0, 0.5, -INF], [0.3, 0.2, 0.1]], device=device)
    y = torch.tensor([0, 1, 2], device=device)
    options = {"label_smoothing": 0.3, "reduction": "none"}
    ours = pyext.cross_entropy(x, y, masked=True, **options)
    singly = [
        F.cross_entropy(x[:1, [0, 2]], torch.tensor([0], device=device), **options),
        F.cross_entropy(x[1:2, [0, 1]], torch.tensor([1], device=device), **options),
        F.cross_entropy(x[2:], torch.tensor([2], device=device), **options),
    ]
    torch.testing.assert_close(ours, torch.cat(singly))


def test_masked_means_nothing_where_all_logits_are_finite(batch):
    x, y = batch
    for smoothing in ("uniform", "others", "lsr"):
        options = {"label_smoothing": 0.2, "smoothing": smoothing}
        agree(
            pyext.cross_entropy(x, y, masked=True, **options),
            pyext.cross_entropy(x, y, **options),
            x,
        )


def test_a_prior_of_zero_takes_nothing_from_a_masked_class(device):
    x = torch.tensor([[1.0, 2.0, -INF]], device=device, requires_grad=True)
    y = torch.tensor([1], device=device)
    prior = torch.tensor([0.25, 0.75, 0.0], device=device)
    loss = pyext.cross_entropy(x, y, label_smoothing=0.1, smoothing=prior)
    theirs = pyext.cross_entropy(x[:, :2], y, label_smoothing=0.1, smoothing=prior[:2])
    torch.testing.assert_close(loss, theirs)
    assert torch.autograd.grad(loss, x)[0][0, 2] == 0


def test_statistics(batch):
    x, y = batch
    y[3] = -100
    loss, stats = pyext.cross_entropy(x, y, label_smoothing=0.1, return_stats=True)
    assert isinstance(stats, pyext.CrossEntropyStats)
    log_p = x.log_softmax(1)
    torch.testing.assert_close(loss, F.cross_entropy(x, y, label_smoothing=0.1))
    torch.testing.assert_close(stats.lse, x.logsumexp(1))
    torch.testing.assert_close(stats.entropy, -(log_p.exp() * log_p).sum(1))
    picked = log_p.gather(1, y.clamp(min=0)[:, None])[:, 0]
    torch.testing.assert_close(stats.target_log_prob, torch.where(y == -100, 0, picked))
    assert torch.equal(stats.argmax, x.argmax(1))


def test_lse_and_entropy_are_differentiable_and_the_rest_is_not(batch):
    x, y = batch
    _, stats = pyext.cross_entropy(x, y, return_stats=True)
    log_p = x.log_softmax(1)
    agree(stats.lse, x.logsumexp(1), x)
    agree(stats.entropy, -(log_p.exp() * log_p).sum(1), x)
    assert not stats.target_log_prob.requires_grad
    assert not stats.argmax.requires_grad


def test_entropy_as_a_bonus_beside_the_loss(batch):
    """One graph through loss, lse and entropy."""
    x, y = batch
    loss, stats = pyext.cross_entropy(x, y, return_stats=True)
    log_p = x.log_softmax(1)
    theirs = F.cross_entropy(x, y) + 0.1 * (log_p.exp() * log_p).sum(1).mean()
    agree(loss - 0.1 * stats.entropy.mean(), theirs, x)


def test_argmax_is_the_first_of_equals_and_finds_nan(device):
    for c in (5, 40):
        x = torch.zeros(10, c, device=device)
        x[1, 3] = x[1, 4] = 1
        x[2, 2] = math.nan
        x[3] = -INF
        y = torch.zeros(10, dtype=torch.long, device=device)
        _, stats = pyext.cross_entropy(x, y, return_stats=True)
        assert stats.argmax.tolist() == [0, 3, 2, 0, 0, 0, 0, 0, 0, 0]


def test_statistics_of_a_half_type_are_float32(device):
    x = torch.randn(4, 5, device=device).bfloat16()
    y = torch.randint(5, (4,), device=device)
    loss, stats = pyext.cross_entropy(x, y, return_stats=True, out_dtype=torch.bfloat16)
    assert loss.dtype == torch.bfloat16
    assert stats.lse.dtype == stats.entropy.dtype == stats.target_log_prob.dtype == torch.float32
    assert stats.argmax.dtype == torch.int64
