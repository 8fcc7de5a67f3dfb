"""Sizes at the edges: of vectors, tiles and blocks, and beyond what 32 bits count."""

import pytest
import torch
import torch.nn.functional as F

import pyext


def check(x, y, **options):
    """Against torch in float64."""
    exact = x.detach().double().requires_grad_()
    theirs = F.cross_entropy(exact, y, **options)
    theirs.backward()
    x = x.detach().requires_grad_()
    ours = pyext.cross_entropy(x, y, **options)
    ours.backward()
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)
    bound = 1e-6 * exact.grad.abs().max().item()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=3e-6, atol=bound)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 64, 130])
def test_every_number_of_classes(device, rows):
    """Vectors of 4 to 16 lanes with every tail, below and above the switch from columns to rows."""
    for c in [*range(2, 70), 111, 112, 113, 127, 128, 129]:
        x, y = torch.randn(rows, c, device=device), torch.randint(c, (rows,), device=device)
        check(x, y, label_smoothing=0.1)


@pytest.mark.parametrize("block", [2048, 4096, 8192])
def test_rows_that_end_near_a_block(device, block):
    for c in (block - 1, block, block + 1, 2 * block, 2 * block + 17):
        x, y = torch.randn(3, c, device=device), torch.tensor([0, c // 2, c - 1], device=device)
        check(x, y, label_smoothing=0.1)


@pytest.mark.parametrize("inner", [1, 7, 8, 63, 64, 65, 129])
def test_every_number_of_neighbouring_rows(device, inner):
    """The class axis is strided: rows are walked in tiles of up to 64."""
    for c in (3, 63, 64, 65, 150):
        x = torch.randn(2, c, inner, device=device)
        check(x, torch.randint(c, (2, inner), device=device), label_smoothing=0.1)


def test_the_largest_logit_may_be_anywhere(device):
    """The maximum so far is corrected block by block; a late one must not spoil early sums."""
    c = 9001
    for at in (0, 1, 2047, 2048, 4095, 4096, 8999, 9000):
        x = torch.randn(2, c, device=device)
        x[:, at] += 60
        y = torch.tensor([at, 17], device=device)
        check(x, y)
        check(x, y, label_smoothing=0.1)


@pytest.mark.parametrize("step", [1e3, 1e30, -1e3, -1e30])
def test_logits_that_rise_or_fall_over_the_row(device, step):
    """Masked logits are often a large negative number instead of -inf."""
    for c in (40, 9001):
        x = torch.randn(3, c, device=device)
        x[:, c // 2 :] += step
        x[2] += step
        y = torch.tensor([0, c - 1, c // 3], device=device)
        exact = x.double()
        theirs = F.cross_entropy(exact, y, reduction="none")
        ours = pyext.cross_entropy(x, y, reduction="none")
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(pyext.cross_entropy(x, y), x)
        exact.requires_grad_()
        (expected,) = torch.autograd.grad(F.cross_entropy(exact, y), exact)
        torch.testing.assert_close(gradient.double(), expected, rtol=3e-6, atol=1e-7)


@pytest.mark.once
def test_more_than_two_to_the_31_logits():
    """A row repeated by stride 0: no memory, yet more logits than 32 bits count."""
    row = torch.randn(1, 90_000)
    x = row.expand(25_000, 90_000)
    assert x.numel() > 2**31
    y = torch.arange(25_000)
    loss = pyext.cross_entropy(x, y, label_smoothing=0.1)
    log_p = row.double().log_softmax(1)[0]
    expected = -0.9 * log_p[:25_000].mean() - 0.1 * log_p.mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_rows_further_apart_than_two_to_the_31():
    """Only the pages of the rows themselves are touched."""
    try:
        room = torch.empty(3 * 2**30 + 1000, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no room for 6 GiB of addresses: {error}")
    values = torch.randn(4, 1000).bfloat16()
    y = torch.tensor([5, 0, 999, 3])
    for shape, strides in [((4, 1000), (2**30, 1)), ((1000, 4), (1, 2**30))]:
        x = room.as_strided(shape, strides)
        x.copy_(values if shape[0] == 4 else values.T)
        target = y if shape[0] == 4 else torch.arange(1000) % 4
        x.requires_grad_()
        plain = x.detach().contiguous().requires_grad_()
        ours, expected = pyext.cross_entropy(x, target), pyext.cross_entropy(plain, target)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
        ours.backward()
        expected.backward()
        torch.testing.assert_close(x.grad, plain.grad, rtol=0.01, atol=0)
