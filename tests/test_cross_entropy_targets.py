"""What targets of cross_entropy may be: class indices, probabilities, and the pairs of mixup."""

import pytest
import torch
import torch.nn.functional as F

import pyext
from tests.layouts import laid_out

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def randn(*shape, device):
    return torch.randn(*shape, dtype=torch.float64, device=device, requires_grad=True)


def agree(ours, theirs, *leaves):
    """The values, and the gradients of a weighted sum of them."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, equal_nan=True)
    weights = torch.linspace(1, 2, max(ours.numel(), 1), dtype=ours.dtype, device=ours.device)
    weights = weights[: ours.numel()].view(ours.shape)
    for x, y in zip(
        torch.autograd.grad((ours * weights).sum(), leaves, retain_graph=True),
        torch.autograd.grad((theirs * weights).sum(), leaves, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12, equal_nan=True)


@REDUCTIONS
@pytest.mark.parametrize("e", [0.0, 0.2])
def test_weights_and_ignored_rows(device, reduction, e):
    """The mean divides by the weights of the targets that are not ignored."""
    x, w = randn(20, 6, device=device), torch.rand(6, dtype=torch.float64, device=device)
    y = torch.randint(6, (20,), device=device)
    options = {"weight": w, "ignore_index": 2, "reduction": reduction, "label_smoothing": e}
    agree(pyext.cross_entropy(x, y, **options), F.cross_entropy(x, y, **options), x)


@REDUCTIONS
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 50, 3), (2, 3, 2, 2, 2)], ids=str)
def test_axes_after_the_classes(device, reduction, shape):
    y = torch.randint(shape[1], (shape[0], *shape[2:]), device=device)
    w = torch.rand(shape[1], dtype=torch.float64, device=device)
    options = {"weight": w, "ignore_index": 1, "reduction": reduction, "label_smoothing": 0.1}
    for _, layout in laid_out(randn(*shape, device=device).detach()):
        x = layout.requires_grad_()
        agree(pyext.cross_entropy(x, y, **options), F.cross_entropy(x, y, **options), x)


def test_the_gradient_lies_in_memory_as_the_logits_do(device):
    for name, layout in laid_out(torch.randn(3, 5, 4, 6, device=device)):
        x = layout.requires_grad_()
        y = torch.randint(5, (3, 4, 6), device=device)
        for scale in (1, 2):
            loss = pyext.cross_entropy(x, y)
            (gradient,) = torch.autograd.grad(loss * scale, x)
            assert gradient.stride() == torch.empty_like(x).stride(), name


@REDUCTIONS
def test_more_axes_than_a_layout_holds(device, reduction):
    """Nine axes that cannot be merged: of each, every other index is left out."""
    shape = (2, 3, 2, 2, 2, 2, 2, 2, 2, 2)
    x = torch.randn([2 * n for n in shape], device=device)[(slice(None, None, 2),) * len(shape)]
    x.requires_grad_()
    y = torch.randint(3, (2, *shape[2:]), device=device)
    ours = pyext.cross_entropy(x, y, reduction=reduction)
    theirs = F.cross_entropy(x, y, reduction=reduction)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), x)[0], torch.autograd.grad(theirs.sum(), x)[0]
    )


@REDUCTIONS
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(4, 5), (4, 60), (3, 4, 5), (5,)], ids=str)
def test_probabilities(device, reduction, weighted, shape):
    axis = 1 if len(shape) > 1 else 0
    x = randn(*shape, device=device)
    q = randn(*shape, device=device).detach().softmax(axis).requires_grad_()
    w = torch.rand(shape[axis], dtype=torch.float64, device=device) if weighted else None
    options = {"weight": w, "reduction": reduction, "label_smoothing": 0.1}
    agree(pyext.cross_entropy(x, q, **options), F.cross_entropy(x, q, **options), x, q)


def test_probabilities_may_require_the_only_gradient(device):
    """As of a student's targets made by a teacher that learns."""
    x, q = randn(4, 5, device=device).detach(), randn(4, 5, device=device)
    agree(pyext.cross_entropy(x, q), F.cross_entropy(x, q), q)


def test_probabilities_of_another_dtype(device):
    x = torch.randn(4, 5, device=device).bfloat16()
    q = torch.randn(4, 5, device=device, dtype=torch.float64).softmax(1)
    expected = F.cross_entropy(x.double(), q).float()
    torch.testing.assert_close(pyext.cross_entropy(x, q), expected, rtol=1e-6, atol=1e-6)


def test_one_hot_probabilities_are_class_indices(device):
    x, y = randn(6, 5, device=device), torch.randint(5, (6,), device=device)
    q = F.one_hot(y, 5).double()
    for smoothing in ("uniform", "others", "lsr", torch.rand_like(x[0]).detach().softmax(0)):
        options = {"label_smoothing": 0.2, "smoothing": smoothing, "z_loss": 0.01}
        agree(pyext.cross_entropy(x, q, **options), pyext.cross_entropy(x, y, **options), x)


def test_a_probability_of_zero_takes_nothing_from_an_infinite_logit(device):
    x = torch.tensor([[1.0, 2.0, -torch.inf]], device=device, requires_grad=True)
    q = torch.tensor([[0.3, 0.7, 0.0]], device=device)
    loss = pyext.cross_entropy(x, q)
    loss.backward()
    torch.testing.assert_close(loss, F.cross_entropy(x[:, :2], q[:, :2]))
    assert x.grad[0, 2] == 0


@REDUCTIONS
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_mixup_is_the_mix_of_two_losses(device, reduction, lam):
    """With weights, and rows ignored in either target: each mean has its own denominator."""
    x, w = randn(20, 6, device=device), torch.rand(6, dtype=torch.float64, device=device)
    a, b = (torch.randint(6, (20,), device=device) for _ in "ab")
    options = {"weight": w, "ignore_index": 2, "reduction": reduction, "label_smoothing": 0.1}
    theirs = lam * F.cross_entropy(x, a, **options) + (1 - lam) * F.cross_entropy(x, b, **options)
    agree(pyext.mixup_cross_entropy(x, a, b, lam, **options), theirs, x)


@REDUCTIONS
@pytest.mark.parametrize("shape", [(20, 6), (4, 6, 5)], ids=str)
def test_mixup_with_a_share_per_sample_or_row(device, reduction, shape):
    x = randn(*shape, device=device)
    rows = (shape[0], *shape[2:])
    a, b = (torch.randint(6, rows, device=device) for _ in "ab")
    for lam in (torch.rand(shape[0], device=device), torch.rand(rows, device=device)):
        lam = lam.double()
        share = lam.view(lam.shape + (1,) * (len(rows) - lam.dim()))
        losses = [F.cross_entropy(x, y, reduction="none") for y in (a, b)]
        theirs = share * losses[0] + (1 - share) * losses[1]
        if reduction != "none":
            theirs = theirs.sum() if reduction == "sum" else theirs.mean()
        agree(pyext.mixup_cross_entropy(x, a, b, lam, reduction=reduction), theirs, x)


def test_mixup_of_a_target_with_itself_is_the_plain_loss(device):
    x, y = randn(7, 5, device=device), torch.randint(5, (7,), device=device)
    options = {"label_smoothing": 0.1, "smoothing": "others", "z_loss": 0.1, "softcap": 5.0}
    ours = pyext.mixup_cross_entropy(x, y, y, 0.3, **options)
    agree(ours, pyext.cross_entropy(x, y, **options), x)


def test_mixup_where_one_target_is_ignored_everywhere(device):
    """The mean over no rows is NaN, of which a share of 0 is NaN too, as lam * nan is."""
    x, y = randn(4, 5, device=device), torch.randint(5, (4,), device=device)
    none = torch.full_like(y, -100)
    assert pyext.mixup_cross_entropy(x, y, none, 0.5).isnan()
    for reduction in ("sum", "none"):
        ours = pyext.mixup_cross_entropy(x, y, none, 0.5, reduction=reduction)
        agree(ours, 0.5 * F.cross_entropy(x, y, reduction=reduction), x)
