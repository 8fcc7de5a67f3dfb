"""The gradient of cross_entropy in use: the CPU may form it in the forward pass already.

That must not be seen but in speed. tests/test_modes.py asks the same of every op on small samples;
here are the paths of large ones, and what only a loss meets.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import pyext
from tests.entry import FLOATING
from tests.layouts import laid_out

# Walked along the row, by columns, and with a strided class axis.
SHAPES = pytest.mark.parametrize("shape", [(6, 300), (100, 7), (3, 20, 9)], ids=str)
DTYPES = pytest.mark.parametrize("dtype", FLOATING, ids=str)


def batch(shape, dtype, device):
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    return x, torch.randint(shape[1], (shape[0], *shape[2:]), device=device)


@SHAPES
@DTYPES
def test_every_way_to_the_gradient_gives_the_same_bits(device, shape, dtype):
    """Formed in the forward pass; scaled; after a first backward; with a graph; with statistics."""
    x, y = batch(shape, dtype, device)

    def loss(**options):
        return pyext.cross_entropy(x, y, label_smoothing=0.1, **options)

    (formed,) = torch.autograd.grad(loss(), x)
    (scaled,) = torch.autograd.grad(loss() * 4, x)
    normal = formed.abs() >= torch.finfo(dtype).smallest_normal  # below, a scale keeps more digits
    assert torch.equal((scaled / 4)[normal], formed[normal])
    value = loss()
    torch.autograd.grad(value, x, retain_graph=True)
    assert torch.equal(torch.autograd.grad(value, x)[0], formed)
    (graphed,) = torch.autograd.grad(loss(), x, create_graph=True)
    assert torch.equal(graphed.detach(), formed)
    if device == "cpu":  # on CUDA rows with statistics are summed by a kernel of their own
        assert torch.equal(torch.autograd.grad(loss(return_stats=True)[0], x)[0], formed)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        value = loss()
    assert torch.equal(torch.autograd.grad(value, x)[0], formed)


@SHAPES
def test_the_gradient_handed_out_belongs_to_the_caller(device, shape):
    """Writing into the first one must not reach the second."""
    x, y = batch(shape, torch.float32, device)
    loss = pyext.cross_entropy(x, y)
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    x.grad.zero_()
    loss.backward(retain_graph=True)
    assert torch.equal(x.grad, first)
    loss.backward()
    assert torch.equal(x.grad, 2 * first)


@SHAPES
def test_two_losses_of_the_same_logits(device, shape):
    x, y = batch(shape, torch.float64, device)
    other = torch.randint_like(y, shape[1])
    total = pyext.cross_entropy(x, y) + 0.5 * pyext.cross_entropy(x, other, reduction="sum")
    theirs = F.cross_entropy(x, y) + 0.5 * F.cross_entropy(x, other, reduction="sum")
    ours, expected = (torch.autograd.grad(loss, x)[0] for loss in (total, theirs))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def test_a_loss_that_is_never_differentiated(device):
    """Nor is anything left behind."""
    x, y = batch((4, 300), torch.float32, device)
    for _ in range(3):
        pyext.cross_entropy(x, y)
    assert x.grad is None


def test_only_the_loss_of_some_rows_is_used(device):
    x, y = batch((6, 300), torch.float64, device)
    rows = pyext.cross_entropy(x, y, reduction="none")
    (gradient,) = torch.autograd.grad(rows[2] * 3, x)
    (expected,) = torch.autograd.grad(F.cross_entropy(x[2], y[2]) * 3, x)
    torch.testing.assert_close(gradient, expected)
    assert (gradient[[0, 1, 3, 4, 5]] == 0).all()


def test_logits_changed_in_place_after_the_call_are_noticed_or_do_not_matter(device):
    x, y = batch((6, 300), torch.float32, device)
    z = x * 1
    expected = torch.autograd.grad(pyext.cross_entropy(z, y), x, retain_graph=True)[0]
    for factor in (1, 2):
        z = x * 1
        loss = pyext.cross_entropy(z, y) * factor
        with torch.no_grad():
            z.zero_()
        message = None
        try:
            (gradient,) = torch.autograd.grad(loss, x)
        except RuntimeError as error:
            message = str(error)
        assert (
            "modified by an inplace operation" in message
            if message
            else torch.equal(gradient, factor * expected)
        )


def test_logits_are_not_written_into(device):
    """Liger-Kernel does (its issues #272 and #343): silently wrong gradients elsewhere."""
    for _, layout in laid_out(torch.randn(8, 300, device=device)):
        x = layout.requires_grad_()
        before, version = x.detach().clone(), x._version
        pyext.cross_entropy(x, torch.arange(8, device=device)).backward()
        assert torch.equal(x, before)
        assert x._version == version


@DTYPES
def test_loss_scaling_keeps_small_gradients(device, dtype):
    """As torch.amp.GradScaler does for float16: the scale must come before the rounding.

    The gradient of a mean over many rows is too small for float16; times 2**16 it is not.
    """
    n, c, scale = 20_000, 30, 2.0**16
    x, y = batch((n, c), dtype, device)
    (pyext.cross_entropy(x, y) * scale).backward()
    exact = x.detach().double().requires_grad_()
    (F.cross_entropy(exact, y) * scale).backward()
    info = torch.finfo(dtype)
    relative = ((x.grad.double() - exact.grad) / exact.grad).abs().max()
    assert relative <= info.eps / 2 + 1e-5
    if dtype == torch.float16:
        assert exact.grad.abs().min() / scale < info.smallest_normal * info.eps / 2


@DTYPES
def test_an_infinite_or_nan_scale_reaches_the_gradient(device, dtype):
    """So that GradScaler sees an overflow."""
    x, y = batch((6, 30), dtype, device)
    for scale in (math.inf, math.nan):
        (gradient,) = torch.autograd.grad(pyext.cross_entropy(x, y) * scale, x)
        assert not gradient.isfinite().any()


def test_a_zero_cotangent_gives_zeros(device):
    x, y = batch((6, 300), torch.float32, device)
    (gradient,) = torch.autograd.grad(pyext.cross_entropy(x, y) * 0, x)
    assert (gradient == 0).all()


@SHAPES
def test_ignored_rows_have_no_gradient_even_where_they_are_nan(device, shape):
    x = torch.randn(shape, device=device)
    x[1] = math.nan
    x.requires_grad_()
    y = torch.randint(shape[1], (shape[0], *shape[2:]), device=device)
    y[1] = -100
    for scale in (1, 3):
        loss = pyext.cross_entropy(x, y, label_smoothing=0.1)
        (gradient,) = torch.autograd.grad(loss * scale, x)
        assert (gradient[1] == 0).all()
        assert gradient.isfinite().all()
