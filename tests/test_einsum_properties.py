"""einsum on equations that hypothesis makes up, beside numpy.einsum."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

import pyext
from tests.layouts import LAYOUTS
from tests.measure import assert_same_bits

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given, settings
from hypothesis import strategies as st

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex64, torch.complex128)
INTEGERS = (torch.int32, torch.int64, torch.int8, torch.uint8)
SIZES = (st.integers(0, 5), st.integers(2, 9), st.integers(1, 40))
MOST_PRODUCTS = 20_000  # for NumPy, which takes them one by one


def examples(count: int) -> settings:
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


@dataclass
class Expression:
    terms: list[str]
    output: str
    operands: list[Tensor]

    @property
    def equation(self) -> str:
        return ",".join(self.terms) + "->" + self.output

    @property
    def products(self) -> int:
        """How many there are, of all the values of all labels."""
        sizes: dict[object, int] = {}
        for term, x in zip(self.terms, self.operands, strict=True):
            before, _, after = term.partition("...")
            hidden = range(len(before) + len(after) - x.dim(), 0)
            for label, n in zip([*before, *hidden, *after], x.shape, strict=True):
                sizes[label] = n if sizes.get(label, 1) == 1 else sizes[label]
        return math.prod(sizes.values())

    def in_numpy(self, change=lambda x: x) -> np.ndarray:
        wide = [change(x.to(wide_dtype(x.dtype))).resolve_conj().numpy() for x in self.operands]
        return np.asarray(np.einsum(self.equation, *wide, optimize=False))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else torch.int64


def values(generator: torch.Generator, shape: list[int], dtype: torch.dtype) -> Tensor:
    if dtype.is_complex or dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=wide_dtype(dtype)).to(dtype)
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max, shape, generator=generator).to(dtype)


@st.composite
def laid_out(draw, x: Tensor) -> Tensor:
    """The values (but for the expanded ones) in another layout."""
    if not x.dim():
        return x
    order = draw(st.permutations(range(x.dim())))
    x = draw(st.sampled_from(LAYOUTS))(x.permute(order))
    return x.permute([order.index(i) for i in range(x.dim())])


@st.composite
def expressions(draw, dtypes, most_operands=4, sizes=SIZES, most_products=MOST_PRODUCTS):
    sizes = draw(st.sampled_from(sizes))
    labels = draw(st.permutations("abcdeXYZ"))[: draw(st.integers(1, 6))]
    size = {label: draw(sizes) for label in labels}
    covered = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(0, 2)))]  # by ellipses
    dtype = draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    terms, operands = [], []
    for _ in range(min(draw(st.sampled_from([2, 3, 1, 4, 2])), most_operands)):
        fewest = draw(st.sampled_from([2, 0, 1, 3]))
        own = draw(st.lists(st.sampled_from(labels), min_size=fewest, max_size=4))
        ones = draw(st.sets(st.sampled_from(labels))) if draw(st.integers(0, 3)) == 0 else ()
        shape = [1 if label in ones else size[label] for label in own]
        if covered and draw(st.booleans()):
            at, hidden = draw(st.integers(0, len(own))), draw(st.integers(0, len(covered)))
            wanted = covered[len(covered) - hidden :]
            shape[at:at] = [draw(st.sampled_from([1, n])) for n in wanted]
            own.insert(at, "...")
        terms.append("".join(own))
        operands.append(draw(laid_out(values(generator, shape, dtype))))
    used = sorted({label for term in terms for label in term if label != "."})
    output = list(draw(st.permutations(used)))[: draw(st.integers(0, len(used)))]
    if any("..." in term for term in terms):
        output.insert(draw(st.integers(0, len(output))), "...")
    expression = Expression(terms, "".join(output), operands)
    while expression.products > most_products:  # keep what is drawn: halve the longest
        longest = max(size, key=size.__getitem__)
        size[longest] //= 2
        expression.operands = [
            shortened(x, term, longest, size[longest])
            for x, term in zip(expression.operands, terms, strict=True)
        ]
    return expression


def shortened(x: Tensor, term: str, label: str, size: int) -> Tensor:
    """A view with fewer values of a label."""
    before, _, after = term.partition("...")
    for axis in [i for i, c in enumerate(before) if c == label]:
        x = x.narrow(axis, 0, min(size, x.shape[axis]))
    for axis in [i - len(after) for i, c in enumerate(after) if c == label]:
        x = x.narrow(axis, 0, min(size, x.shape[axis]))
    return x


def assert_near(actual: Tensor, expression: Expression) -> None:
    """Within the bound that holds for sums in any order: one rounding per term and factor.

    NumPy's own sums have no smaller one, in float64; complex products are of four.
    """
    dtype = actual.dtype
    expected = torch.from_numpy(expression.in_numpy())
    magnitude = torch.from_numpy(expression.in_numpy(torch.abs))
    arithmetic = torch.promote_types(dtype, torch.float32)
    count = expression.products // max(expected.numel(), 1) + len(expression.operands)
    count *= (4 if dtype.is_complex else 1) * (2 if wide_dtype(dtype) == dtype else 1)
    bound = torch.finfo(arithmetic).eps * count * magnitude
    if dtype != arithmetic:
        info = torch.finfo(dtype)
        bound = bound + info.eps * expected.abs() + info.smallest_normal * info.eps
        expected = torch.where(expected.abs() <= info.max, expected, math.nan)  # or infinite
        actual = torch.where(expected.isnan(), math.nan, actual)
    wrong = ~((actual - expected).abs() <= bound) & ~expected.isnan()
    assert not wrong.any(), f"{expression.equation}: {actual[wrong][:3]}, {expected[wrong][:3]}"


@examples(300)
@given(expressions(FLOATING + COMPLEX))
def test_floating_point(expression):
    actual = pyext.einsum(expression.equation, *expression.operands)
    assert actual.dtype == expression.operands[0].dtype
    assert actual.shape == expression.in_numpy().shape
    assert_near(actual, expression)


@examples(150)
@given(expressions(INTEGERS))
def test_integers(expression):
    actual = pyext.einsum(expression.equation, *expression.operands)
    assert torch.equal(actual, torch.from_numpy(expression.in_numpy()).to(actual.dtype))


@examples(100)
@given(expressions(FLOATING + COMPLEX))
def test_implicit_results(expression):
    """Without the arrow: the labels that appear once, in order."""
    equation = ",".join(expression.terms)
    letters = [c for c in equation if c.isalpha()]
    once = "".join(sorted(c for c in letters if letters.count(c) == 1))
    expression.output = ("..." if "..." in equation else "") + once
    actual = pyext.einsum(equation, *expression.operands)
    assert_near(actual, expression)


@examples(150)
@given(expressions((torch.float64,)), st.sampled_from([1, -0.5]), st.data())
def test_into_out(expression, beta, data):
    expected = pyext.einsum(expression.equation, *expression.operands)
    start = torch.randn(expected.shape, dtype=expected.dtype)
    out = data.draw(laid_out(start))
    if 0 in out.stride() and out.numel() > 1:
        return
    expected = 2 * expected + beta * out
    pyext.einsum(expression.equation, *expression.operands, alpha=2, beta=beta, out=out)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-9)


@examples(100)
@given(expressions((torch.float64,)), st.data())
def test_the_order_of_operands_does_not_matter(expression, data):
    expected = pyext.einsum(expression.equation, *expression.operands)
    order = data.draw(st.permutations(range(len(expression.terms))))
    equation = ",".join(expression.terms[i] for i in order) + "->" + expression.output
    actual = pyext.einsum(equation, *[expression.operands[i] for i in order], layout="any")
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-9)


@examples(100)
@given(expressions((torch.float64, torch.complex128), most_operands=3))
def test_gradients(expression):
    """Beside torch.einsum, in float64."""
    operands = [x.detach().requires_grad_() for x in expression.operands]
    results = [f(expression.equation, *operands) for f in (pyext.einsum, torch.einsum)]
    cotangent = torch.randn_like(results[1])
    actual, expected = (
        torch.autograd.grad(y, operands, cotangent, allow_unused=True, materialize_grads=True)
        for y in results
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-8)


@examples(100)
@given(expressions((torch.float64,)), st.data())
def test_vmap(expression, data):
    in_dims = [
        data.draw(st.none() | st.integers(-x.dim() - 1, x.dim())) for x in expression.operands
    ]
    if all(dim is None for dim in in_dims):
        in_dims[0] = 0
    pairs = list(zip(expression.operands, in_dims, strict=True))
    stacked = [x if dim is None else torch.stack([x, 2 * x, -x], dim) for x, dim in pairs]

    def call(*operands: Tensor) -> Tensor:
        return pyext.einsum(expression.equation, *operands)

    expected = torch.stack(
        [call(*[x if dim is None else scale * x for x, dim in pairs]) for scale in (1, 2, -1)]
    )
    actual = torch.vmap(call, tuple(in_dims))(*stacked)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-9)


@examples(40)
@given(
    expressions(
        (torch.float32, torch.bfloat16, torch.int32),
        most_operands=3,
        sizes=[st.integers(1, 8), st.integers(30, 80)],
        most_products=1_000_000,
    )
)
def test_the_number_of_threads_does_not_matter(expression):
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(pyext.einsum(expression.equation, *expression.operands))
    assert_same_bits(results[:1], results[1:])
