"""Bilinear forms and poolings of sizes, layouts and options that hypothesis makes up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pyext
from tests.entry import FLOATING
from tests.layouts import LAYOUTS
from tests.measure import assert_same_bits
from tests.references.bilinear import biaffine, bilinear
from tests.references.bilinear_pool import bilinear_pool
from tests.references.compact_bilinear_pool import compact_bilinear_pool
from tests.references.matrix_sqrt_pool import matrix_sqrt_pool

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.once

SIZES = st.integers(1, 9) | st.integers(1, 70)
FEW = st.integers(1, 6)
DIVIDED = (["signed_sqrt", "l2"], ("l2",), ("signed_sqrt",), ())


def examples(count: int) -> settings:
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


def normal(draw, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal values in a layout that is drawn too."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return draw(st.sampled_from(LAYOUTS))(x)


# ---- forms ----


@st.composite
def forms(draw, dtypes=(torch.float64,), pairs=False):
    """x1, x2, weight and perhaps bias."""
    dtype = draw(st.sampled_from(dtypes))
    leading = draw(st.lists(st.integers(0, 4), max_size=2 if pairs else 3))
    rows, columns = ([draw(FEW)] if pairs else [] for _ in range(2))  # positions of x1 and of x2
    i, j, o = draw(FEW), draw(SIZES), draw(FEW)
    shapes = [[*leading, *rows, i], [*leading, *columns, j], [o, i, j], [o]]
    return [normal(draw, *s, dtype=dtype) for s in shapes[: 3 + draw(st.booleans())]]


def assert_near(actual: Tensor, reference, args: list[Tensor]) -> None:
    """Within a rounding of the arithmetic per term and factor, and one to the dtype."""
    expected = reference(*[x.double() for x in args])
    magnitude = reference(*[x.double().abs() for x in args])
    info, eps = torch.finfo(actual.dtype), torch.finfo(actual.dtype).eps
    arithmetic = torch.finfo(torch.promote_types(actual.dtype, torch.float32)).eps
    terms = args[2][0].numel() + 3
    bound = arithmetic * terms * magnitude * (2 if actual.dtype == torch.float64 else 1)
    if eps != arithmetic:
        bound = bound + eps * expected.abs() / 2 + info.smallest_normal * eps
    assert actual.shape == expected.shape
    assert ((actual - expected).abs() <= bound).all()


@examples(300)
@given(forms(FLOATING))
def test_bilinear(args):
    assert_near(pyext.bilinear(*args), bilinear, args)


@examples(200)
@given(forms(FLOATING, pairs=True))
def test_biaffine(args):
    assert_near(pyext.biaffine(*args), biaffine, args)


@examples(100)
@given(forms())
def test_gradients_of_bilinear_are_those_of_torch(args):
    args = [x.detach().requires_grad_() for x in args]
    results = [function(*args) for function in (pyext.bilinear, F.bilinear)]
    cotangent = torch.randn_like(results[1])
    actual, expected = (torch.autograd.grad(y, args, cotangent) for y in results)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


# ---- poolings ----


@st.composite
def features(draw, most=2, dtype=torch.float64):
    """One or two feature maps with the same samples and positions."""
    n, positions = draw(st.integers(1, 3)), draw(st.lists(FEW, min_size=1, max_size=3))
    if draw(st.booleans()):
        positions[0] = draw(SIZES)
    count = draw(st.integers(1, most))
    return [normal(draw, n, draw(SIZES), *positions, dtype=dtype) for _ in range(count)]


def assert_like_reference(function, reference, inputs: list[Tensor], *args, **kwargs) -> None:
    """The result and its gradients, in float64."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    actual, expected = (f(*inputs, *args, **kwargs) for f in (function, reference))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    cotangent = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, inputs, cotangent) for y in (actual, expected)]
    scale = max(1.0, *(x.abs().max().item() for x in gradients[1]))
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9 * scale)


@examples(200)
@given(features(), st.sampled_from(DIVIDED), st.booleans(), st.booleans(), st.data())
def test_bilinear_pool(inputs, normalize, packed, center, data):
    positions = inputs[0][0, 0].numel()
    options = {
        "normalize": normalize,
        "packed": packed and len(inputs) == 1,
        "center": center and positions > 1,  # of one, nothing is left but rounding
        "scale": data.draw(st.sampled_from([None, 1.0, -0.25])),
        "eps": data.draw(st.sampled_from([1e-5, 1e-2])),
    }
    assert_like_reference(pyext.bilinear_pool, bilinear_pool, inputs, **options)


@examples(100)
@given(features(), st.integers(1, 200), st.integers(-(2**70), 2**70))
def test_compact_bilinear_pool(inputs, output_dim, seed):
    def of(function):
        return lambda x, y=None: function(x, y, output_dim, seed=seed)

    functions = of(pyext.compact_bilinear_pool), of(compact_bilinear_pool)
    assert_like_reference(*functions, inputs)


@examples(100)
@given(features(most=1), st.integers(1, 6), st.booleans())
def test_matrix_sqrt_pool(inputs, iterations, packed):
    if inputs[0][0, 0].numel() == 1:
        inputs = [inputs[0].repeat(1, 1, 3, *[1] * (inputs[0].dim() - 3)).cumsum(2)]
    options = {"iterations": iterations, "packed": packed}
    assert_like_reference(pyext.matrix_sqrt_pool, matrix_sqrt_pool, inputs, **options)


POOLINGS = {
    "bilinear_pool": pyext.bilinear_pool,
    "compact_bilinear_pool": lambda x, y=None: pyext.compact_bilinear_pool(x, y, 40),
    "matrix_sqrt_pool": lambda x, y=None: pyext.matrix_sqrt_pool(x),
}


@pytest.mark.parametrize("name", POOLINGS)
@examples(30)
@given(features(), st.data())
def test_vmap_over_any_axes(name, inputs, data):
    dims = [data.draw(st.none() | st.integers(-x.dim() - 1, x.dim())) for x in inputs]
    if all(dim is None for dim in dims):
        dims[0] = 0
    batched = [
        x if dim is None else torch.stack([x, 2 * x, -x], dim)
        for x, dim in zip(inputs, dims, strict=True)
    ]
    expected = torch.stack(
        [
            POOLINGS[name](
                *[x if d is None else scale * x for x, d in zip(inputs, dims, strict=True)]
            )
            for scale in (1, 2, -1)
        ]
    )
    actual = torch.vmap(POOLINGS[name], tuple(dims))(*batched)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", POOLINGS)
@examples(20)
@given(features(dtype=torch.float32))
def test_neither_threads_nor_neighbours_matter(name, inputs):
    """A sample has the same bits alone, among others, and on any number of threads."""
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(POOLINGS[name](*inputs))
    torch.set_num_threads(1)
    results.append(
        torch.cat([POOLINGS[name](*[x[i : i + 1] for x in inputs]) for i in range(len(inputs[0]))])
    )
    assert_same_bits([results[0]] * 2, results[1:])
