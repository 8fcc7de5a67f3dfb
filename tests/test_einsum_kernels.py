"""einsum: the kernel that a plan takes for a shape, and what that kernel computes.

The values are small integers, whose sums are exact in any order.
"""

import pytest
import torch

import pyext

MATMULS = [
    ("ij,jk->ik", (600, 1100), (1100, 530)),
    ("ij,kj->ki", (300, 131), (173, 131)),
    ("ji,jk->ik", (900, 513), (900, 17)),
    ("bij,bjk->bik", (70, 16, 24), (70, 24, 40)),
    ("bji,bkj->bik", (5, 33, 190), (5, 201, 33)),
    ("bhqk,bkhd->bqhd", (2, 3, 128, 130), (2, 130, 3, 128)),
    ("abij,abjk->abik", (3, 2, 90, 64), (3, 2, 64, 70)),
]
WEIGHED = [
    ("bi,oij,bj->bo", (130, 70), (5, 70, 90), (130, 90)),
    ("bi,oij,bj->bo", (33, 200), (3, 200, 1000), (33, 1000)),
    ("bi,ji,bj->b", (300, 65), (67, 65), (300, 67)),
    ("bi,oij,bj->ob", (64, 129), (2, 129, 64), (64, 64)),
]
DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.int64


def integers(shape, dtype):
    values = torch.randint(-3, 4, shape)
    if dtype.is_complex:
        return torch.complex(values.double(), torch.randint(-3, 4, shape).double()).to(dtype)
    return values.to(dtype)


def exact(equation, *operands):
    wide = torch.complex128 if operands[0].is_complex() else torch.float64
    return torch.einsum(equation, *[x.to(wide) for x in operands]).to(operands[0].dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize(("equation", "left", "right"), MATMULS)
def test_matrices_as_they_lie_go_to_blas(equation, left, right, dtype):
    x, y = integers(left, dtype), integers(right, dtype)
    expected = exact(equation, x, y)
    assert "matmul" in str(pyext.einsum_plan(equation, x, y))
    assert torch.equal(pyext.einsum(equation, x, y), expected)
    room = torch.full([size + 3 for size in expected.shape], 5, dtype=dtype)
    out = room[tuple(slice(size) for size in expected.shape)]
    pyext.einsum(equation, x, y, out=out)
    assert torch.equal(out, expected)
    out.fill_(5)
    assert int((room == 5).sum()) == room.numel()
    pyext.einsum(equation, x, y, out=out, alpha=2, beta=-1)
    assert torch.equal(out, 2 * expected - 5)


@pytest.mark.parametrize("transposed", [False, True])
def test_what_blas_cannot_walk_goes_to_tiles(transposed):
    x, y = integers((200, 260), torch.float32), integers((130, 200, 2), torch.float32)
    expected = torch.einsum("ji,jk->ik", x[:, ::2], y[..., 0].T)
    plan = pyext.einsum_plan("ji,jk->ik", x[:, ::2], y[..., 0].T)
    assert "tiles" in str(plan)
    out = torch.empty(130, 130).T if transposed else None
    assert torch.equal(pyext.einsum("ji,kj->ik", x[:, ::2], y[..., 0], out=out), expected)


def test_intermediates_go_to_blas_too():
    x, y, z = (integers(s, torch.float64) for s in [(300, 40), (40, 310), (310, 200)])
    plan = pyext.einsum_plan("ij,jk,kl->il", x, y, z)
    assert str(plan).count("matmul") == 2
    assert torch.equal(plan(x, y, z), exact("ij,jk,kl->il", x, y, z))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("equation", "first", "second", "third"), WEIGHED)
def test_rows_are_weighed(equation, first, second, third, dtype):
    operands = [integers(shape, dtype) for shape in (first, second, third)]
    expected = exact(equation, *operands)
    assert "weighed" in str(pyext.einsum_plan(equation, *operands))
    assert torch.equal(pyext.einsum(equation, *operands), expected)
    if not dtype.is_floating_point or dtype.itemsize < 4:
        return
    turned = [x.mT.contiguous().mT for x in operands]
    assert torch.equal(pyext.einsum(equation, *turned), expected)
    out = torch.full(expected.shape[::-1], 3, dtype=dtype).permute(*reversed(range(expected.dim())))
    pyext.einsum(equation, *operands, out=out, alpha=0.5, beta=2)
    assert torch.equal(out, 0.5 * expected + 6)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64])
@pytest.mark.parametrize("rows", range(1, 9))
@pytest.mark.parametrize(
    "equation", ["bij,bjk->bik", "bij,bjk->kbi", "bij,bj->ib", "abij,bjk->bika"]
)
def test_products_of_many_small_matrices(equation, rows, dtype):
    sizes = {"a": 2, "b": 2500, "i": rows, "j": 3, "k": 5}
    shapes = [[sizes[label] for label in term] for term in equation.split("->")[0].split(",")]
    x, y = (integers(shape, dtype) for shape in shapes)
    expected = exact(equation, x, y)
    assert torch.equal(pyext.einsum(equation, x, y), expected)
    assert torch.equal(pyext.einsum(equation, x.mT.contiguous().mT, y), expected)
    room = torch.full([size + 1 for size in expected.shape], 5, dtype=dtype)
    out = room[tuple(slice(size) for size in expected.shape)]
    pyext.einsum(equation, x, y, out=out, alpha=2, beta=-1)
    assert torch.equal(out, 2 * expected - 5)
    out.fill_(5)
    assert int((room == 5).sum()) == room.numel()


# Factors that few rows need are multiplied where they lie, when their rows are whole vectors.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [16, 20, 32, 64])
@pytest.mark.parametrize("equation", ["bhqk,bkhd->bqhd", "bhkq,bkhd->bqhd", "bhqk,bkhd->bhdq"])
def test_small_heads_of_attention(equation, columns, dtype):
    x = integers((3, 2, 24, 24), dtype)
    y = integers((3, 24, 5, 2, columns), dtype)[:, :, 3]
    assert torch.equal(pyext.einsum(equation, x, y), exact(equation, x, y))


# Values that 32 bits hold are multiplied by another instruction, block by block; one more than that
# anywhere takes the other.
@pytest.mark.parametrize("value", [2**31 - 1, -(2**31), 2**31, -(2**31) - 1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("where", [(0, 0), (69, 299), (33, 150)])
@pytest.mark.parametrize(("equation", "swapped"), [("ij,kj->ik", False), ("ij,jk->ik", True)])
def test_integers_of_more_than_32_bits(equation, swapped, where, value):
    x, y = integers((70, 300), torch.int64), integers((70, 300), torch.int64)
    y[where] = value
    y[5] *= 2**31 - 1
    if swapped:
        x, y = y, x.t()
    expected = (x.unsqueeze(1) * (y.t() if swapped else y)).sum(2)
    assert torch.equal(pyext.einsum(equation, x, y), expected)


# Written past the caches, from the first aligned place of each row on.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.complex64])
@pytest.mark.parametrize("offset", [0, 1, 7])
def test_results_too_large_for_caches(offset, dtype):
    x, y = integers((3001,), dtype), integers((2999,), dtype)
    room = torch.full((3001, 3010), 5, dtype=dtype)
    out = room[:, offset : offset + 2999]
    assert out.numel() * out.element_size() > 32 << 20
    pyext.einsum("i,j->ij", x, y, out=out)
    assert torch.equal(out, x[:, None] * y)
    pyext.einsum("i,ij->ij", x, out.clone(), out=out)
    assert torch.equal(out, (x * x)[:, None] * y)
    out.fill_(5)
    assert int((room == 5).sum()) == room.numel()


def test_rows_that_overlap_are_summed_as_they_lie():
    x, room = integers((40, 200), torch.float32), integers((8192,), torch.float32)
    y = room.as_strided((200, 100), (32, 1))
    expected = exact("ij,jk->ik", x, y.clone())
    assert torch.equal(pyext.einsum("ij,jk->ik", x, y), expected)
    y = room.as_strided((20, 10, 100), (32, 64, 1))
    x = x.view(40, 20, 10)
    expected = exact("ijk,jkl->il", x, y.clone())
    assert torch.equal(pyext.einsum("ijk,jkl->il", x, y), expected)
    y = room.as_strided((2, 100, 30), (64, 1, 100))
    x = integers((40, 30), torch.float32)
    assert torch.equal(pyext.einsum("ij,abj->iab", x, y), exact("ij,abj->iab", x, y.clone()))


def test_infinite_padding_does_not_leak_into_weighed_rows():
    x1, w, x2 = (integers(s, torch.float32) for s in [(19, 33), (2, 33, 40), (19, 40)])
    x1 = x1.repeat(9, 1)
    x2 = x2.repeat(9, 1)
    x1[0], x2[1] = torch.inf, torch.nan
    result = pyext.einsum("bi,oij,bj->bo", x1, w, x2)
    assert torch.equal(result[2:], exact("bi,oij,bj->bo", x1[2:], w, x2[2:]))
    assert result[1].isnan().all()
