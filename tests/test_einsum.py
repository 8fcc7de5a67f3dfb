"""einsum: its language, its result, its dtypes."""

import functools
import math

import pytest
import torch

import pyext
from tests.references.einsum import einsum as reference

# Equations, with the shapes of their operands.
LANGUAGE = [
    ("ij,jk", (2, 3), (3, 4)),
    ("ba", (2, 3)),  # implicit: in the alphabet's order
    ("bA", (2, 3)),  # capitals first
    ("ab,ab", (2, 3), (2, 3)),
    ("i", (3,)),
    ("", ()),
    (",", (), ()),
    ("->", ()),
    (" i j , j k -> i k ", (2, 3), (3, 4)),
    ("...", (2, 3)),
    ("...->", (2, 3)),
    ("...i->...", (2, 3, 4)),
    ("i...->...", (2, 3, 4)),
    ("i...j->j...i", (2, 3, 4, 5)),
    ("...,...", (2, 1, 4), (3, 4)),
    ("...ij,...jk", (2, 1, 3, 4), (5, 4, 2)),
    ("i...,...j->...", (2, 3), (3, 4)),
    ("...i,j...->ij", (3, 2), (4, 3)),  # what the ellipsis stands for is summed
    ("... i , i -> ...", (2, 3), (3,)),
    ("ii", (3, 3)),
    ("iij->ij", (3, 3, 2)),
    ("iiii->i", (3, 3, 3, 3)),
    ("ijij,jj->i", (2, 3, 2, 3), (3, 3)),
    ("i->ii", (3,)),
    ("i->iii", (3,)),
    ("ij->jiji", (2, 3)),
    ("...i->i...i", (2, 3)),
    ("ij,jk->kik", (2, 3), (3, 4)),
    ("ij,jk->", (2, 3), (3, 4)),
    ("i,j,k,l->lkji", (2,), (3,), (4,), (5,)),
    ("ij,ij,ij,ij,ij->j", (3, 2), (3, 2), (3, 2), (3, 2), (3, 2)),
    ("ab,bc,cd,de,ef,fg->ag", (2, 3), (3, 4), (4, 2), (2, 5), (5, 3), (3, 2)),
    ("ij,jk->ik", (1, 3), (1, 4)),  # sizes of 1 broadcast, also those that are summed
    ("ij,ij->", (1, 3), (2, 1)),
    ("βδ,δλ->βλ", (2, 3), (3, 4)),
    ("zé,éŒ", (2, 3), (3, 4)),
    ("𐌰b,b𐌱->𐌱𐌰", (2, 3), (3, 4)),
]


def operands_of(shapes, device, dtype=torch.float64):
    return [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]


def check(*args, **kwargs):
    """The result, after a look at the reference; in float64, where both round alike."""
    actual = pyext.einsum(*args, **kwargs)
    expected = reference(*args, **kwargs)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    return actual


@pytest.mark.parametrize("case", LANGUAGE, ids=lambda case: case[0])
def test_language(device, case):
    equation, *shapes = case
    operands = operands_of(shapes, device)
    expected = check(equation, *operands)
    assert torch.equal(pyext.einsum(equation, operands), expected)
    assert torch.equal(pyext.einsum(equation, tuple(operands)), expected)
    check(equation, *operands, alpha=-0.5)
    check(equation, *operands, layout="any")


def test_sublists(device):
    x, y = operands_of([(2, 3), (3, 4)], device)
    for terms in [
        (x, [0, 1], y, [1, 2]),
        (x, [0, 1], y, [1, 2], [2, 0]),
        (x, (7, 1), y, (1, 1000000)),
        (x, [99, 1], y, [1, 3]),  # implicit: in the order of the numbers
        (x, [0, 1], []),
        (x, [..., 1], y, [1, 0], [0, ...]),
        (x, [..., 0]),
        (x, [3, 3000], [3, 3000, 3]),
    ]:
        check(*terms)


def test_more_labels_than_letters(device):
    vectors = operands_of([(2,)] * 60, device)
    terms = [item for label, x in enumerate(vectors) for item in (x, [label])]
    expected = math.prod(x.sum().item() for x in vectors)
    assert pyext.einsum(*terms, []).item() == pytest.approx(expected, rel=1e-12)

    x = torch.randn([1] * 58 + [2, 3], device=device)
    labels = list(range(100, 160))
    assert torch.equal(pyext.einsum(x, labels, labels[::-1]), x.permute(list(range(60))[::-1]))

    chain = operands_of([(2, 2)] * 56, device)
    terms = [item for i, x in enumerate(chain) for item in (x, [i, i + 1])]
    expected = functools.reduce(torch.matmul, chain)
    torch.testing.assert_close(pyext.einsum(*terms), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("equation", ["ij->ij", "ij->ji", "ii->i", "...->...", "i...->...i", "ij"])
def test_what_is_only_a_view_shares_memory(device, equation):
    x = torch.randn(3, 3, device=device)
    view = pyext.einsum(equation, x)
    assert view.data_ptr() == x.data_ptr()
    assert view.stride() == torch.einsum(equation, x).stride()
    view.fill_(7)
    assert (pyext.einsum(equation, x) == 7).all()


@pytest.mark.parametrize("equation", ["ij->i", "ii", "i...->", "ij->iji", "ij,->ij"])
def test_what_is_computed_has_memory_of_its_own(device, equation):
    x = torch.randn(3, 3, device=device)
    operands = [x] if "," not in equation else [x, torch.ones((), device=device)]
    before = x.clone()
    pyext.einsum(equation, *operands).fill_(7)
    pyext.einsum("ij->ji", x, alpha=2).fill_(7)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "equation", ["ij,jk->ki", "ij,jk->ik", "ij,kj->ki", "ij,jk->kij", "ij,jk->k", "ji,jk->iki"]
)
def test_results_are_contiguous(device, equation):
    x = torch.randn(4, 4, device=device)
    for operands in ([x, x], [x.T, x], [x, x.T], [x.expand(4, 4), x[:1].expand(4, 4)]):
        assert pyext.einsum(equation, *operands).is_contiguous()


def test_paths(device):
    operands = operands_of([(2, 3), (3, 4), (4, 5), (5, 2)], device)
    equation = "ij,jk,kl,lm->mi"
    for path in (
        None,
        [(0, 1), (0, 1), (0, 1)],
        [(2, 3), (1, 2), (0, 1)],
        [(3, 0), (0, 1), (1, 0)],
        [(0, 1, 2, 3)],
        [(1, 2, 3), (0, 1)],
        ["einsum_path", (1, 3), (0, 1), (0, 1)],
    ):
        check(equation, *operands, path=path)


INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
SUMS = [
    ("ij,jk->ik", (9, 37), (37, 21)),
    ("ij,ij->i", (9, 37), (9, 37)),
    ("i,j->ij", (9,), (37,)),
    ("ij,jk,kl->il", (5, 7), (7, 6), (6, 3)),
]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("case", SUMS, ids=lambda case: case[0])
def test_integers_wrap_around(device, dtype, case):
    equation, *shapes = case
    info = torch.iinfo(dtype)
    operands = [torch.randint(info.min, info.max, shape).to(device, dtype) for shape in shapes]
    result = pyext.einsum(equation, *operands, alpha=3)
    assert result.dtype == dtype
    assert torch.equal(result, reference(equation, *operands, alpha=3).to(dtype))


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool])
def test_one_tensor_of_integers_is_summed_in_int64(device, dtype):
    x = torch.randint(0, 2, (50, 7), device=device) * 100
    x = x.to(dtype)
    for equation in ("ij->i", "ij->", "ij->j"):
        result = pyext.einsum(equation, x)
        assert result.dtype == torch.int64
        assert torch.equal(result, reference(equation, x))
    assert pyext.einsum("ij->ji", x).dtype == dtype


@pytest.mark.parametrize("case", SUMS, ids=lambda case: case[0])
def test_products_of_bool_say_whether_any_is_true(device, case):
    equation, *shapes = case
    for share in (0.05, 0.5, 1.0):
        operands = [torch.rand(shape, device=device) < share for shape in shapes]
        result = pyext.einsum(equation, *operands)
        assert result.dtype == torch.bool
        assert torch.equal(result, reference(equation, *operands))


DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
)


@pytest.mark.parametrize("second", DTYPES)
@pytest.mark.parametrize("first", DTYPES)
def test_dtypes_are_promoted(device, first, second):
    values = torch.tensor([[0, 1, 1], [1, 1, 0]], device=device)
    x, y = values.to(first), values.T.to(second)
    for equation, other in (("ij,jk->ik", y), ("ij,ji->i", y), ("ij,->ij", y[0, 1])):
        expected = torch.result_type(x, other)
        if expected == torch.complex32:  # of float16 and one complex number: no ops to speak of
            continue
        result = pyext.einsum(equation, x, other)
        assert result.dtype == expected
        assert torch.equal(result, reference(equation, x, other).to(result.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_rounded_once_over_the_whole_expression(device, dtype):
    """The intermediates are whole numbers that float32 holds, and half types do not."""
    shapes = [(6, 9), (9, 40), (40, 5), (5, 3)]
    operands = [torch.randint(-4, 5, shape).to(device, dtype) for shape in shapes]
    for equation, count in (("ij,jk->ik", 2), ("ij,jk,kl->il", 3), ("ij,jk,kl,lm->im", 4)):
        exact = reference(equation, *operands[:count])
        assert exact.abs().max() > 256 or count == 2
        assert torch.equal(pyext.einsum(equation, *operands[:count]), exact.to(dtype))


def test_accumulate_dtype(device):
    x, y = torch.randn(20, 300, device=device), torch.randn(300, 20, device=device)
    for equation, other in (("ij,jk->ik", y), ("ij,ji->i", y)):
        result = pyext.einsum(equation, x, other, accumulate_dtype=torch.float64)
        assert result.dtype == torch.float32
        assert torch.equal(result, reference(equation, x, other).float())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_conjugate_and_negated_views(device, dtype):
    x, y = operands_of([(5, 7), (7, 5)], device, dtype)
    for equation in ("ij,jk->ik", "ij,ji->i", "ij,ji->ij", "ij,jk->kiki"):
        for a, b in ((x.conj(), y), (x, y.conj()), (y.mH, x.mH), (x.conj(), torch._neg_view(y))):
            actual = pyext.einsum(equation, a, b)
            assert not actual.is_conj()
            expected = pyext.einsum(equation, a.resolve_conj(), b.resolve_conj().resolve_neg())
            torch.testing.assert_close(actual, expected)
            expected = reference(equation, a, b).to(dtype)
            torch.testing.assert_close(actual, expected)
    check("ij,ji->", *operands_of([(5, 7), (7, 5)], device, torch.complex128), alpha=2 - 1j)
