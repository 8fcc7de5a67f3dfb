"""Samples of compact_bilinear_pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pyext
from tests.entry import BadCall, Entry, Maker, Sample
from tests.layouts import laid_out
from tests.references.compact_bilinear_pool import compact_bilinear_pool as reference
from tests.samples.pooling_bad import bad_features, bad_pairs


def native(
    x: Tensor,
    y: Tensor | None = None,
    output_dim: int = 8192,
    *,
    seed: int = 0,
    sketch: Any = None,
) -> Any:
    """By Fourier transforms, which torch has for float32 and float64, and not of nothing."""
    if not x.numel():
        return NotImplemented
    x = x.flatten(2)
    y = x if y is None else y.flatten(2)
    if sketch is None:
        sketch = pyext.tensor_sketch(x.shape[1], y.shape[1], output_dim, seed=seed, device=x.device)

    def count_sketch(z: Tensor, places: Tensor, signs: Tensor) -> Tensor:
        room = z.new_zeros(z.shape[0], z.shape[2], output_dim)
        sketched = room.index_add(2, places, z.mT * signs.to(z.dtype))
        return sketched.to(torch.promote_types(z.dtype, torch.float32))

    a = count_sketch(x, sketch.hash1, sketch.sign1)
    b = count_sketch(y, sketch.hash2, sketch.sign2)
    product = torch.fft.rfft(a) * torch.fft.rfft(b)
    return torch.fft.irfft(product, n=output_dim).sum(1).to(x.dtype)


def samples(make: Maker) -> Iterator[Sample]:
    sizes = [(1, 1, 1, 1), (2, 3, 5, 4), (3, 7, 1, 10), (2, 16, 49, 33), (5, 33, 2, 100)]
    for n, d, s, k in [*sizes, (2, 67, 49, 100), (1, 131, 9, 1000), (0, 4, 5, 6)]:
        yield Sample(f"shape-{n}x{d}x{s}-{k}", (make.normal(n, d, s), None, k))
    yield Sample("shape-1x200x300-8192", (make.normal(1, 200, 300),))
    for n, d1, d2, s, k in [
        (2, 5, 9, 7, 16),
        (3, 1, 40, 4, 7),
        (2, 67, 3, 49, 64),
        (0, 4, 3, 5, 8),
    ]:
        args = make.normal(n, d1, s), make.normal(n, d2, s), k
        yield Sample(f"two-{n}x{d1}x{d2}x{s}-{k}", args, {"seed": 3}, grad=(0, 1))
    x, y = make.normal(3, 19, 3, 4), make.normal(3, 18, 3, 4)
    for name, z in laid_out(x):
        yield Sample(f"strides-{name}", (z, None, 50))
    for name, z in laid_out(y):
        yield Sample(f"strides-{name}-second", (x, z, 50), grad=(0, 1))
    x, y = make.normal(3, 9, 4, 5), make.normal(3, 6, 4, 5)
    yield Sample("with-itself", (x, x, 20), grad=(0, 1))
    sketch = pyext.tensor_sketch(9, 6, 20, seed=-5, device=make.device)
    yield Sample("sketch", (x, y, 20), {"sketch": sketch}, grad=(0, 1))
    alone = pyext.tensor_sketch(9, output_dim=20, seed=2**40, device=make.device)
    alone = alone._replace(sign1=alone.sign1.to(make.dtype), sign2=alone.sign2.double())
    yield Sample("sketch-alone", (x, None, 20), {"sketch": alone})
    yield Sample("zeros", (torch.zeros_like(x), None, 20))
    collisions = alone._replace(hash1=alone.hash1 * 0 + 19)  # every channel in one place
    yield Sample("collisions", (x, None, 20), {"sketch": collisions})


def small_samples(make: Maker) -> Iterator[Sample]:
    x, y = make.normal(2, 3, 4), make.normal(2, 5, 4)
    yield Sample("plain", (x, None, 6))
    yield Sample("image", (make.normal(2, 3, 1, 4), None, 5), {"seed": 7})
    yield Sample("two", (x, y, 6), grad=(0, 1))
    sketch = pyext.tensor_sketch(3, 5, 7, seed=1, device=make.device)
    yield Sample("sketch", (x, y, 7), {"sketch": sketch}, grad=(0, 1))


def large_samples(make: Maker) -> Iterator[Sample]:
    yield Sample("large", (make.normal(5, 96, 150), None, 1000))
    args = make.normal(4, 67, 14, 14), make.normal(4, 90, 14, 14), 600
    yield Sample("large-two", args, grad=(0, 1))


def bad_calls(make: Maker) -> Iterator[BadCall]:
    x = make.normal(2, 4, 9)
    yield from bad_features(x)
    yield from bad_pairs(x)
    sketch = pyext.tensor_sketch(4, output_dim=8, device=make.device)
    short = pyext.tensor_sketch(3, output_dim=8, device=make.device)
    real = sketch._replace(hash1=sketch.hash1.float())
    for name, args, options, error, says in [
        ("output-dim", (x, None, 0), {}, ValueError, r"output_dim >= 1, got 0"),
        ("negative", (x, None, -8), {}, ValueError, r"output_dim >= 1, got -8"),
        ("short-sketch", (x, None, 8), {"sketch": short}, ValueError, r"hash1.*4.*, got .*3"),
        ("real-hashes", (x, None, 8), {"sketch": real}, TypeError, r"hash1.*, got Float"),
    ]:
        yield BadCall(name, args, options, error, says)


def extra_bytes(sample: Sample) -> int:
    """The result, the gradients, the sketches, and tiles."""
    x, y, output_dim = sample.args
    given = [x] if y is None else [x, y]
    channels = sum(z.shape[1] for z in given) * 2
    result = x.shape[0] * output_dim * x.element_size()
    return result + sum(z.nbytes for z in given) + 100 * channels + (8 << 20)


def saved_bytes(sample: Sample) -> int:
    """The sketches: an integer and a sign per channel of each input."""
    x, y = sample.args[:2]
    return 12 * (x.shape[1] + (x if y is None else y).shape[1])


ENTRIES = [
    Entry(
        op="compact_bilinear_pool",
        function=pyext.compact_bilinear_pool,
        reference=reference,
        native=native,
        samples=samples,
        small_samples=small_samples,
        large_samples=large_samples,
        bad_calls=bad_calls,
        extra_bytes=extra_bytes,
        saved_bytes=saved_bytes,
    )
]
