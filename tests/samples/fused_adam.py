"""Samples of fused_adam: lists of tensors, as an optimizer hands them over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

import pyext
from tests.entry import BadCall, Entry, Maker, Sample, copied
from tests.layouts import LAYOUTS
from tests.references.fused_adam import fused_adam as reference

LAID_OUT = [layout for layout in LAYOUTS if layout.__name__ != "expanded"]  # cannot be written to


def native(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    **options: Any,
) -> Any:
    if "grad_scale" in options or isinstance(options["lr"], Tensor):
        return NotImplemented
    written = [[copied(x) for x in xs] for xs in (params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs)]
    known = {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
    flags = {"amsgrad": False, "maximize": False, "decoupled_weight_decay": False}
    steps = [step - 1 for step in state_steps]
    adam(
        written[0],
        [x.clone() for x in grads],
        *written[1:],
        steps,
        foreach=False,
        **{**known, **flags, **options},
    )
    return written


def in_place(*lists: list[Tensor], **options: Any) -> list[list[Tensor]]:
    """fused_adam_ on copies that lie as the arguments do."""
    copies = [[x.clone() if x.is_sparse else copied(x) for x in xs] for xs in lists]
    pyext.fused_adam_(*copies, **options)
    return [copies[0], *copies[2:5]]


def tensors(make: Maker, shapes: list[tuple[int, ...]], amsgrad: bool = False) -> list[Any]:
    """Parameters, gradients, moments that such gradients leave, and counts from 1 on."""

    def positive(shape: tuple[int, ...]) -> Tensor:
        return make.normal(*shape, scale=0.2).square()

    return [
        [make.normal(*shape) for shape in shapes],
        [make.normal(*shape, scale=0.3) for shape in shapes],
        [make.normal(*shape, scale=0.1) for shape in shapes],
        [positive(shape) for shape in shapes],
        [positive(shape) for shape in shapes] if amsgrad else [],
        [torch.tensor(float(1 + i % 3), device=make.device) for i in range(len(shapes))],
    ]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "l2": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True, "weight_decay": 0.01},
    "betas": {"beta1": 0.3, "beta2": 0.7},
    "no-momentum": {"beta1": 0.0},
    "eps": {"eps": 1.0},
    "everything": {
        "amsgrad": True,
        "maximize": True,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
        "eps": 1e-3,
    },
}


def samples(make: Maker) -> Iterator[Sample]:
    shapes = [(), (0,), (1,), (7,), (3, 0, 2), (257,), (4, 1031), (2, 3, 4, 5)]
    for name, options in OPTIONS.items():
        args = tensors(make, shapes, options.get("amsgrad", False))
        yield Sample(name, tuple(args), {"lr": 0.01, **options}, grad=())
    for layout in LAID_OUT:
        args = tensors(make, [(3, 4, 5, 6)])
        yield Sample(
            f"strides-{layout.__name__}",
            (*[[layout(x) for x in xs] for xs in args[:5]], args[5]),
            {"lr": 0.01},
            grad=(),
        )
        mixed = [[layout(x) for x in args[0]], *args[1:]]
        yield Sample(f"gradient-beside-{layout.__name__}", tuple(mixed), {"lr": 0.01}, grad=())
        mixed = [args[0], [layout(x) for x in args[1]], *args[2:]]
        yield Sample(f"gradient-{layout.__name__}", tuple(mixed), {"lr": 0.01}, grad=())
    args = tensors(make, [(3, 4)])
    expanded = [args[0], [args[1][0][:1].expand(3, 4)], *args[2:]]
    yield Sample("gradient-expanded", tuple(expanded), {"lr": 0.01}, grad=())
    scale = torch.tensor(4.0, device=make.device)
    options = {"lr": 0.01, "grad_scale": scale, "found_inf": torch.zeros((), device=make.device)}
    yield Sample("grad-scale", tuple(tensors(make, [(5,), (300,)])), options, grad=())
    options = {"lr": 0.01, "found_inf": torch.ones((), device=make.device)}
    yield Sample("found-inf", tuple(tensors(make, [(5,)])), {**options, "grad_scale": scale}, ())
    yield Sample("nothing", ([], [], [], [], [], []), {"lr": 0.01}, grad=())


def small_samples(make: Maker) -> Iterator[Sample]:
    for name, options in OPTIONS.items():
        args = tensors(make, [(3,), (2, 2)], options.get("amsgrad", False))
        yield Sample(name, tuple(args), {"lr": 0.01, **options}, grad=())


def large_samples(make: Maker) -> Iterator[Sample]:
    many = tensors(make, [(300,)] * 400)
    yield Sample("many", tuple(many), {"lr": 0.01}, grad=())
    yield Sample("large", tuple(tensors(make, [(300_007,), (5,)])), {"lr": 0.01}, grad=())


def bad_calls(make: Maker) -> Iterator[BadCall]:
    def bad(name: str, error: type[Exception], message: str, **lists: Any) -> BadCall:
        args = tensors(make, [(3,), (4,)])
        names = ["params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps"]
        for key, value in lists.items():
            args[names.index(key)] = value
        return BadCall(name, tuple(args), {"lr": 0.01}, error, message)

    three = make.normal(3)
    yield bad("few-gradients", ValueError, r"expected 2 tensors in grads", grads=[three])
    yield bad(
        "shape", ValueError, r"parameter 1: its gradient is expected to", grads=[three, three]
    )
    sparse = make.normal(4).to_sparse()
    yield bad("sparse", RuntimeError, r"parameter 1: its gradient is sparse", grads=[three, sparse])
    integers = make.index_tensor([1, 2, 3])
    four = make.normal(4)
    yield bad("integers", TypeError, r"parameter 0: expected a float", params=[integers, four])
    yield bad(
        "moments", TypeError, r"parameter 0: exp_avg cannot be Long", exp_avgs=[integers, four]
    )
    yield bad("no-maximum", ValueError, r"expected 0 tensors in max", max_exp_avg_sqs=[three])


def entry(function: Any) -> Entry:
    return Entry(
        op="fused_adam",
        function=function,
        reference=reference,
        native=native,
        samples=samples,
        small_samples=small_samples,
        large_samples=large_samples,
        bad_calls=bad_calls,
        # Both give copies; the step itself allocates nothing.
        extra_bytes=lambda sample: sum(x.nbytes for x in sample.tensors()) + 1024,
        saved_bytes=lambda sample: 0,
        has_derivative=False,
    )


ENTRIES = [entry(pyext.fused_adam), entry(in_place)]
