"""einsum beside torch.einsum: the calls of torch's own tests, and those of everyday."""

import numpy as np
import pytest
import torch
from torch.testing import make_tensor
from torch.testing._internal.common_methods_invocations import sample_inputs_einsum

import pyext
from tests.measure import assert_agrees, errors
from tests.references.einsum import einsum as reference

INTEGERS = (torch.int32, torch.int64)
REAL = (torch.float64, torch.float32, torch.bfloat16)
COMPLEX = (torch.complex128, torch.complex64)

# Of test_einsum in torch's test/test_linalg.py, after
# https://gist.github.com/rockt/15ee013889d65342088e9260a377dc8f
OF_TORCHS_TESTS = [
    ("i->", (5,)),
    ("i,i->", (5,), (5,)),
    ("i,i->i", (5,), (5,)),
    ("i,j->ij", (5,), (7,)),
    ("ij->ji", (3, 5)),
    ("ij->j", (3, 5)),
    ("ij->i", (3, 5)),
    ("ij,ij->ij", (3, 5), (3, 5)),
    ("ij,j->i", (3, 5), (5,)),
    ("ij,kj->ik", (3, 5), (2, 5)),
    ("ij,ab->ijab", (3, 5), (7, 9)),
    ("Aij,Ajk->Aik", (2, 3, 5), (2, 5, 7)),
    ("ijk,jk->i", (2, 3, 5), (3, 5)),
    ("aij,jk->aik", (2, 5, 7), (7, 9)),
    ("abCd,dFg->abCFg", (2, 3, 3, 5), (5, 4, 6)),
    ("ijk,jk->ik", (2, 3, 5), (3, 5)),
    ("ijk,jk->ij", (2, 3, 5), (3, 5)),
    ("ijk,ik->j", (2, 3, 5), (2, 5)),
    ("ijk,ik->jk", (2, 3, 5), (2, 5)),
    ("ii", (4, 4)),
    ("ii->i", (4, 4)),
    ("iji->j", (2, 3, 2)),
    ("ngrg...->nrg...", (2, 1, 3, 1, 4)),
    ("i...->...", (4, 4)),
    ("ki,...k->i...", (5, 3), (2, 5)),
    ("k...,jk->...", (5, 3), (2, 5)),
    ("...ik, ...j -> ...ij", (2, 3, 5), (5,)),
    ("Bik,k...j->i...j", (2, 3, 5), (5, 3)),
    ("i...j, ij... -> ...ij", (2, 3, 5), (2, 5, 2, 3)),
    ("bn,anm,bm->ba", (5, 10), (15, 10, 20), (5, 20)),
]
EVERYDAY = [
    ("ij->ji", (33, 20)),
    ("ij->", (33, 20)),
    ("ij->j", (33, 20)),
    ("ij->i", (33, 20)),
    ("ii->i", (33, 33)),
    ("ii->", (33, 33)),
    ("ik,k->i", (33, 20), (20,)),
    ("ik,kj->ij", (33, 20), (20, 17)),
    ("ij,ij->", (33, 20), (33, 20)),
    ("i,j->ij", (33,), (20,)),
    ("ij,j->ij", (33, 20), (20,)),
    ("ij,ij->i", (33, 20), (33, 20)),
    ("ijk,ikl->ijl", (5, 7, 9), (5, 9, 8)),
    ("bn,anm,bm->ba", (8, 9), (7, 9, 6), (8, 6)),
    ("ijklno,ijlmno->ijkmno", (2, 3, 4, 5, 2, 3), (2, 3, 5, 4, 2, 3)),
    ("bij,bij->bi", (5, 7, 9), (5, 7, 9)),
    ("bij,bij->b", (5, 7, 9), (5, 7, 9)),
    ("bij,bj->bij", (5, 7, 9), (5, 9)),
    ("bhqd,bhkd->bhqk", (2, 3, 7, 8), (2, 3, 9, 8)),
    ("bqhd,bkhd->bhqk", (2, 7, 3, 8), (2, 9, 3, 8)),
    ("bhqk,bkhd->bqhd", (2, 3, 7, 9), (2, 9, 3, 8)),
    ("bihd,bjhd->bhij", (2, 7, 3, 8), (2, 9, 3, 8)),
    ("jk,ijkl->il", (7, 8), (5, 7, 8, 6)),
    ("Nc,Nc->N", (333, 2), (333, 2)),
    ("ijk,jr,kr->ir", (7, 8, 9), (8, 5), (9, 5)),
    ("bni,bnij,bnj->bn", (2, 33, 3), (2, 33, 3, 3), (2, 33, 3)),
    ("ij,jk,kl->il", (33, 5), (5, 33), (33, 5)),
    ("...ij,...jk->...ik", (2, 3, 7, 8), (3, 8, 5)),
    ("bdn,ben->bde", (2, 19, 33), (2, 23, 33)),
]
# Terms of the sublist form, with `...` for an Ellipsis.
SUBLISTS = [
    [(5,), [0]],
    [(5,), [0], []],
    [(5,), [0], (7,), [1], [0, 1]],
    [(3, 5), [0, 1], [1, 0]],
    [(3, 5), [0, 1], (5,), [1], [0]],
    [(3, 5), [0, 1], (2, 5), [2, 1]],
    [(3, 5), [0, 1], (2, 5), [2, 1], [0, 2]],
    [(2, 1, 3, 1, 4), [0, 1, 2, 1, ...], [0, 2, 1, ...]],
    [(5, 3), [0, 1], (2, 5), [..., 0]],
    [(5, 3), [0, 1], (2, 5), [..., 0], [1, ...]],
    [(5, 3), [0, ...], (2, 5), [1, 0], [...]],
    [(3, 5), [0, 30]],
    [(3, 5), [30, 0]],
    [(3, 5), [25, 26], (5, 2), [26, 51]],
    [(5, 10), [40, 41], (15, 10, 20), [2, 41, 50], (5, 20), [40, 50], [40, 2]],
]


def made(device, dtype, shapes, noncontiguous=False):
    return [
        make_tensor(shape, device=device, dtype=dtype, low=-1, high=2, noncontiguous=noncontiguous)
        for shape in shapes
    ]


@pytest.mark.parametrize("noncontiguous", [False, True])
@pytest.mark.parametrize("dtype", [*REAL, *COMPLEX, *INTEGERS])
@pytest.mark.parametrize("case", OF_TORCHS_TESTS + EVERYDAY, ids=lambda case: case[0])
def test_results_are_those_of_torch(device, case, dtype, noncontiguous):
    equation, *shapes = case
    operands = made(device, dtype, shapes, noncontiguous)
    actual, expected = pyext.einsum(equation, *operands), reference(equation, *operands)
    if dtype in INTEGERS:
        # Where torch sums one operand before the product, int32 becomes int64, or an error.
        native = torch.einsum(equation, *[x.long() for x in operands])
        assert torch.equal(actual.long(), native)
        assert actual.dtype == (
            dtype if len(operands) > 1 else torch.einsum(equation, *operands).dtype
        )
        return
    native = torch.einsum(equation, *operands)
    assert (actual.shape, actual.dtype) == (native.shape, native.dtype)
    if dtype in COMPLEX:
        magnitude = reference(equation, *[x.abs() for x in operands]).max()
        terms = max(expected.numel(), *[x.numel() for x in operands])
        bound = torch.finfo(dtype).eps * terms * magnitude
        assert ((actual - expected).abs() <= bound).all()
    else:
        assert_agrees(actual, expected)
        if dtype != torch.float64:
            limit = max(errors(native, expected, dtype).max().item(), 2)
            assert errors(actual, expected, dtype).max().item() <= limit


@pytest.mark.parametrize("dtype", [*REAL, *COMPLEX])
def test_samples_of_torch(device, dtype):
    samples = list(sample_inputs_einsum(None, device, dtype))
    assert len(samples) >= 11
    for sample in samples:
        (equation,) = sample.args
        expected = torch.einsum(equation, *sample.input)
        actual = pyext.einsum(equation, *sample.input)
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, rtol=None, atol=None)
        assert torch.equal(pyext.einsum(equation, sample.input), actual)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("case", OF_TORCHS_TESTS + EVERYDAY, ids=lambda case: case[0])
def test_gradients_are_those_of_torch(device, case, dtype):
    equation, *shapes = case
    operands = [x.requires_grad_() for x in made(device, dtype, shapes)]
    actual, expected = pyext.einsum(equation, *operands), torch.einsum(equation, *operands)
    cotangent = torch.randn_like(expected)
    for x, y in zip(
        torch.autograd.grad(actual, operands, cotangent),
        torch.autograd.grad(expected, operands, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("terms", SUBLISTS, ids=str)
def test_sublists(device, terms):
    args = [
        torch.randn(x, dtype=torch.float64, device=device) if isinstance(x, tuple) else x
        for x in terms
    ]
    torch.testing.assert_close(pyext.einsum(*args), torch.einsum(*args))


@pytest.mark.parametrize(
    ("equation", "values", "expected"),
    [
        (" ", [1], 1),
        (" -> ", [1], 1),
        (" , ", [2, 2], 4),
        (" , , ", [2, 2, 2], 8),
        (" , -> ", [2, 2], 4),
        (" i ", [[1]], [1]),
        (" i -> ", [[1]], 1),
        (" i -> i ", [[1]], [1]),
        (" i , i ", [[2], [2]], 4),
        (" i , i -> i ", [[2], [2]], [4]),
        ("i", [[]], []),
        (" i j -> j", [[[], []]], []),
        ("ij->i", [[[], []]], [0, 0]),
        (" i j k  ,  k  -> i j ", [np.ones((3, 0, 6)), np.ones(6)], [[], [], []]),
        ("i,j", [[2], [1, 2]], [[2, 4]]),
        ("i,ij->ij", [[1, 2], [[1, 2, 3], [2, 3, 4]]], [[1, 2, 3], [4, 6, 8]]),
        ("...", [1], 1),
        ("...->", [1], 1),
        ("...->...", [1], 1),
        ("...", [[1]], [1]),
        ("...->", [[1]], 1),
        ("z...->z", [[1]], [1]),
        ("Z...->...Z", [[1]], [1]),
        ("...a->", [[[2], [4]]], 6),
        ("a...b->ab", [[[[1], [2]], [[3], [4]]]], [[3], [7]]),
    ],
)
def test_corners(device, equation, values, expected):
    """Of test_einsum_corner_cases in torch's test/test_linalg.py."""
    operands = [torch.as_tensor(x, dtype=torch.float32, device=device) for x in values]
    actual = pyext.einsum(equation, operands)
    assert torch.equal(actual, torch.tensor(expected, dtype=torch.float32, device=device))
    assert torch.equal(actual, torch.einsum(equation, operands))
