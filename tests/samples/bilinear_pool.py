"""Samples of bilinear_pool.

Where a product of channels is near 0 the root is so steep that no precision is enough: there
torch's own result differs from the reference as much as any. Channels are therefore alike up to
their signs, as those behind a ReLU, except where the products are exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import pyext
from tests.entry import BadCall, Entry, Maker, Sample
from tests.layouts import laid_out
from tests.references.bilinear_pool import bilinear_pool as reference
from tests.references.bilinear_pool import packed_triangle
from tests.samples.pooling_bad import bad_features, bad_pairs

EVERYTHING = [("signed_sqrt", "l2"), ("signed_sqrt",), ("l2",), ()]


def features(make: Maker, n: int, d: int, *positions: int) -> Tensor:
    """Channels that are large together, each with a scale, a sign and some noise of its own."""
    own, ones = make.uniform(n, d, *positions).double(), [1] * len(positions)
    scale = make.uniform(d).double() + 0.3
    scale[1::3] *= -1  # not half of them: their sum is not to cancel
    shared = torch.linspace(0.1, 2, math.prod(positions), dtype=own.dtype, device=own.device)
    return make.tensor(scale.view(-1, *ones) * (shared.view(positions) + own / 4))


def native(
    x: Tensor,
    y: Tensor | None = None,
    *,
    scale: float | None = None,
    eps: float = 1e-5,
    normalize: Sequence[str] = ("signed_sqrt", "l2"),
    packed: bool = False,
    center: bool = False,
) -> Tensor:
    x = x.flatten(2)
    y = x if y is None else y.flatten(2)
    if center:
        x, y = x - x.mean(2, keepdim=True), y - y.mean(2, keepdim=True)
    z = torch.bmm(x, y.mT)
    z = z / x.shape[2] if scale is None else z * scale
    if "signed_sqrt" in normalize:
        z = z.sign() * torch.sqrt(z.abs() + eps)
    if packed:
        z = packed_triangle(z).to(x.dtype)
    return F.normalize(z.flatten(1)).view_as(z) if "l2" in normalize else z


def samples(make: Maker) -> Iterator[Sample]:
    sizes = [(2, 4, 5), (3, 7, 1), (2, 16, 49), (5, 33, 2), (2, 67, 49), (1, 131, 9)]
    for i, (n, d, s) in enumerate([*sizes, (1, 200, 300), (0, 4, 5)]):
        x, packed = features(make, n, d, s), {"packed": True} if i % 2 else {}
        yield Sample(f"shape-{n}x{d}x{s}" + "-packed" * len(packed), (x,), packed)
    for n, d1, d2, s in [
        (2, 4, 10, 7),
        (3, 4, 40, 9),
        (2, 67, 4, 49),
        (1, 33, 131, 9),
        (0, 4, 3, 5),
    ]:
        args = features(make, n, d1, s), features(make, n, d2, s)
        yield Sample(f"two-{n}x{d1}x{d2}x{s}", args, grad=(0, 1))
    yield from _strides(make)
    yield from _options(make, features(make, 3, 19, 3, 7), features(make, 3, 13, 3, 7))
    yield from _zeros(make)


def _strides(make: Maker) -> Iterator[Sample]:
    x, y = features(make, 3, 19, 3, 4), features(make, 3, 18, 3, 4)
    for i, (name, z) in enumerate(laid_out(x)):
        packed = {"packed": True, "center": True} if i % 2 else {}
        yield Sample(f"strides-{name}", (z,), packed)
    for name, z in laid_out(y):
        yield Sample(f"strides-{name}-second", (x, z), grad=(0, 1))


def _options(make: Maker, x: Tensor, y: Tensor) -> Iterator[Sample]:
    for normalize in EVERYTHING:
        name = "+".join(normalize) or "neither"
        options = {"normalize": normalize}
        yield Sample(f"{name}-center", (x,), {**options, "center": True})
        yield Sample(f"{name}-packed", (x,), {**options, "packed": True})
        yield Sample(f"{name}-two", (x, y), options, grad=(0, 1))
    yield Sample("two-center", (x, y), {"center": True}, grad=(0, 1))
    yield Sample("scale", (x,), {"scale": -2.5})
    yield Sample("scale-packed", (x,), {"scale": 0.5, "packed": True, "normalize": ()})
    for eps in (0.0, 1e-2):
        yield Sample(f"eps-{eps}", (x,), {"eps": eps})
    yield Sample("with-itself", (x, x), grad=(0, 1))


def _zeros(make: Maker) -> Iterator[Sample]:
    x, y = features(make, 4, 6, 8), features(make, 4, 4, 8)
    nothing, dead = torch.zeros_like(x), x.clone()
    dead[:, 1::4] = 0  # channels
    dead[1] = 0  # a sample
    for name, options in {
        "": {},
        "-packed": {"packed": True},
        "-center": {"center": True},
        "-eps-0": {"eps": 0.0},
        "-l2": {"normalize": ("l2",)},
    }.items():
        yield Sample(f"zeros{name}", (nothing,), options)
        yield Sample(f"dead{name}", (dead,), options)
    # Their norm is 1 whatever they are, and the gradient is 0 but for what rounding leaves of it.
    options = {"normalize": ("signed_sqrt",)}
    yield Sample("constant", (torch.full_like(x, 0.5),), options)
    yield Sample("constant-packed", (torch.full_like(x, 0.5),), {**options, "packed": True})
    yield Sample("one-by-one", (x[:, :1, :1],), options)
    yield Sample("zeros-first", (nothing, y), grad=(0, 1))
    yield Sample("dead-first", (dead, y), grad=(0, 1))


def small_samples(make: Maker) -> Iterator[Sample]:
    x, y = features(make, 2, 3, 4), features(make, 2, 5, 4)
    yield Sample("plain", (x,))
    yield Sample("image-packed", (features(make, 2, 3, 1, 5),), {"packed": True})
    yield Sample("center", (x,), {"center": True, "normalize": ("signed_sqrt",)})
    yield Sample("center-packed", (x,), {"center": True, "packed": True, "scale": 2.0})
    yield Sample("two", (x, y), {"eps": 0.1}, grad=(0, 1))
    yield Sample("two-center", (x, y), {"center": True, "normalize": ("l2",)}, grad=(0, 1))
    yield Sample("neither-packed", (x,), {"normalize": (), "packed": True})


def large_samples(make: Maker) -> Iterator[Sample]:
    yield Sample("large", (features(make, 5, 131, 150),))
    yield Sample("large-packed", (features(make, 3, 96, 14, 14),), {"packed": True, "center": True})
    yield Sample("large-two", (features(make, 4, 67, 200), features(make, 4, 90, 200)), grad=(0, 1))


def bad_calls(make: Maker) -> Iterator[BadCall]:
    x = make.normal(2, 4, 9)
    yield from bad_features(x)
    yield from bad_pairs(x)
    for name, args, options, error, says in [
        (
            "image",
            (x.view(2, 4, 3, 3), x.view(2, 4, 1, 9)),
            {},
            ValueError,
            r"y of .*\[3, 3\] of x",
        ),
        ("packed-two", (x, x), {"packed": True}, ValueError, r"packed=False with two inputs"),
        ("eps", (x,), {"eps": -1.0}, ValueError, r"eps >= 0, got -1"),
        ("nan-eps", (x,), {"eps": float("nan")}, ValueError, r"eps >= 0, got nan"),
        ("normalize", (x,), {"normalize": ("l1",)}, ValueError, r"normalize .*, got \('l1',\)"),
        ("normalize-text", (x,), {"normalize": "l2"}, ValueError, r"normalize .*, got 'l2'"),
    ]:
        yield BadCall(name, args, options, error, says)


def extra_bytes(sample: Sample) -> int:
    """The result, the gradients, a number per sample, and tiles."""
    x = sample.args[0]
    result = pyext.bilinear_pool(*[z.to("meta") for z in sample.args], **sample.kwargs)
    return result.nbytes + sum(z.nbytes for z in sample.args) + 8 * x.shape[0] + (8 << 20)


ENTRIES = [
    Entry(
        op="bilinear_pool",
        function=pyext.bilinear_pool,
        reference=reference,
        native=native,
        samples=samples,
        small_samples=small_samples,
        large_samples=large_samples,
        bad_calls=bad_calls,
        extra_bytes=extra_bytes,
        saved_bytes=lambda sample: 8 * sample.args[0].shape[0],  # a norm per sample
        saves_result=True,
        sums_result=True,
    )
]
