"""Samples of matrix_sqrt_pool."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import pyext
from tests.entry import BadCall, Entry, Maker, Sample
from tests.layouts import laid_out
from tests.references.bilinear_pool import packed_triangle
from tests.references.matrix_sqrt_pool import matrix_sqrt_pool as reference
from tests.samples.pooling_bad import bad_features


def native(x: Tensor, iterations: int = 5, *, packed: bool = True) -> Tensor:
    """In eager torch, as users write it."""
    x = x.flatten(2)
    n, d, s = x.shape
    x = x - x.mean(2, keepdim=True)
    covariance = torch.bmm(x, x.mT) / s
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-12).view(n, 1, 1)
    y, three = covariance / trace, 3 * torch.eye(d, dtype=x.dtype, device=x.device)
    z = torch.eye(d, dtype=x.dtype, device=x.device).expand(n, d, d)
    for _ in range(iterations):
        t = 0.5 * (three - torch.bmm(z, y))
        y, z = torch.bmm(y, t), torch.bmm(t, z)
    y = y * trace.sqrt()
    return packed_triangle(y).to(x.dtype) if packed else y


# Of a few small matrices the errors of five iterations, ours and torch's, are too much alike to
# say whose are the larger; of large ones torch's are.
def samples(make: Maker) -> Iterator[Sample]:
    small = [(1, 1, 1), (2, 1, 9), (2, 3, 50), (3, 7, 1), (2, 16, 49), (2, 67, 49), (0, 4, 5)]
    for i, (n, d, s) in enumerate([*small, (5, 33, 80), (1, 100, 200), (1, 99, 70)]):
        x, iterations = make.normal(n, d, s), 2 if (n, d, s) in small else 5
        yield Sample(f"shape-{n}x{d}x{s}", (x, iterations), {"packed": i % 2 == 0})
    for name, x in laid_out(make.normal(3, 19, 4, 5)):
        yield Sample(f"strides-{name}", (x, 1))
    for iterations in (1, 2, 9):
        yield Sample(f"iterations-{iterations}", (make.normal(2, 30, 90), iterations))
    nothing, dead = make.tensor(torch.zeros(2, 5, 8)), make.normal(3, 6, 40)
    dead[:, ::3] = 0  # channels
    dead[1] = 0  # a sample
    yield Sample("zeros", (nothing,))
    yield Sample("constant", (nothing + 0.5,))
    yield Sample("dead", (dead,), {"packed": False})
    yield Sample("small", (make.normal(2, 6, 20) / 64,))


def small_samples(make: Maker) -> Iterator[Sample]:
    yield Sample("plain", (make.normal(2, 3, 4),))
    yield Sample("matrices", (make.normal(2, 3, 4),), {"packed": False})
    yield Sample("image", (make.normal(2, 3, 1, 5), 3))
    yield Sample("one", (make.normal(2, 3, 4), 1))


def large_samples(make: Maker) -> Iterator[Sample]:
    yield Sample("large", (make.uniform(5, 96, 150),))
    yield Sample("large-matrices", (make.uniform(3, 67, 14, 14), 3), {"packed": False})


def bad_calls(make: Maker) -> Iterator[BadCall]:
    x = make.normal(2, 4, 9)
    yield from bad_features(x)
    yield BadCall("iterations", (x, 0), {}, ValueError, r"iterations >= 1, got 0")


def extra_bytes(sample: Sample) -> int:
    """The result, the gradient, and a few matrices for each thread."""
    x = sample.args[0]
    result = pyext.matrix_sqrt_pool(*[x.to("meta"), *sample.args[1:]], **sample.kwargs)
    matrices = 16 * torch.get_num_threads() * x.shape[1] ** 2 * 4
    return result.nbytes + x.nbytes + matrices + (1 << 20)


ENTRIES = [
    Entry(
        op="matrix_sqrt_pool",
        function=pyext.matrix_sqrt_pool,
        reference=reference,
        native=native,
        samples=samples,
        small_samples=small_samples,
        large_samples=large_samples,
        bad_calls=bad_calls,
        extra_bytes=extra_bytes,
        saved_bytes=lambda sample: 0,  # the features and the result
        saves_result=True,
        sums_result=True,
    )
]
