"""Derivatives beyond `loss.backward()`: second ones, of several outputs, by `torch.func`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad

from examples.programs import Result

SAMPLES, FEATURES, CLASSES = 12, 6, 4


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, their classes, a form for each class, and a direction in the forms."""
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, FEATURES)
    target = torch.randint(CLASSES, (SAMPLES,))
    form = torch.randn(CLASSES, FEATURES, FEATURES) / FEATURES
    return x, target, form, torch.randn_like(form)


def loss_of(form: Tensor, x: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of bilinear forms of an attended input; every op that pyext has."""
    weights = torch.einsum("nf,mf->nm", x, x).softmax(1)
    attended = torch.einsum("nm,mf->nf", weights, x)
    return F.cross_entropy(F.bilinear(x, attended, form), target, label_smoothing=0.1)


def gradient_penalty() -> Result:
    """Training on a loss that has a gradient in it."""
    x, target, form, _ = problem()
    form.requires_grad_()
    optimizer = torch.optim.Adam([form], lr=0.05)
    losses = []
    for _ in range(10):
        x.requires_grad_()
        loss = loss_of(form, x, target)
        (slope,) = grad(loss, x, create_graph=True)
        total = loss + 0.1 * slope.square().sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.detach())
    return Result(torch.stack(losses), form.detach())


def several_outputs() -> Result:
    """Of several inputs, with cotangents, twice through one graph."""
    x, target, form, _ = problem()
    x.requires_grad_()
    form.requires_grad_()
    scores = F.bilinear(x, x, form)
    loss = F.cross_entropy(scores, target)
    cotangents = [torch.ones_like(scores), torch.tensor(2.0)]
    first = grad([scores, loss], [x, form], grad_outputs=cotangents, retain_graph=True)
    second = grad([scores, loss], [x, form], grad_outputs=cotangents)
    gradients = torch.cat([y.flatten() for y in (*first, *second)])
    return Result(loss.detach()[None], gradients)


def hessian_vector_product() -> Result:
    x, target, form, direction = problem()
    form.requires_grad_()
    loss = loss_of(form, x, target)
    (gradient,) = grad(loss, form, create_graph=True)
    (product,) = grad((gradient * direction).sum(), form)
    return Result(loss.detach()[None], product)


def by_func() -> Result:
    """The Hessian-vector product forward over reverse, gradients per sample, a whole Hessian."""
    x, target, form, direction = problem()

    def loss(form: Tensor) -> Tensor:
        return loss_of(form, x, target)

    def loss_of_one(form: Tensor, x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.bilinear(x, x, form), target)

    value, product = torch.func.jvp(torch.func.grad(loss), (form,), (direction,))
    each = torch.func.vmap(torch.func.grad(loss_of_one), in_dims=(None, 0, 0))(form, x, target)
    hessian = torch.func.hessian(lambda x: F.cross_entropy(x, target))(x[:, :CLASSES])
    found = (value, product, each, hessian)
    return Result(loss(form)[None], torch.cat([y.flatten() for y in found]))
