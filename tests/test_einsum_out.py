"""einsum into a given tensor: out= with any strides, alpha, beta, and what it refuses."""

import math

import pytest
import torch

import pyext
from tests.layouts import LAYOUTS
from tests.references.einsum import einsum as reference

# One for each way to compute: tiles, one pass, tiny matrices, several steps, copies, diagonals.
CASES = [
    ("ij,jk->ik", (19, 23), (23, 37)),
    ("ij,jk->ki", (19, 23), (23, 37)),
    ("aeb,ce->bca", (5, 11, 7), (10, 11)),
    ("bij,bjk->bik", (33, 3, 4), (33, 4, 3)),
    ("ijb,jkb->kib", (3, 4, 33), (4, 3, 33)),
    ("ij,ij->i", (19, 37), (19, 37)),
    ("ij,ij->j", (19, 37), (19, 37)),
    ("i,j->ij", (19,), (37,)),
    ("ij,j->ji", (19, 37), (37,)),
    ("ij,ij->", (19, 37), (19, 37)),
    ("ijk,jr,kr->ir", (5, 6, 7), (6, 9), (7, 9)),
    ("ij,jk,kl->il", (5, 9), (9, 6), (6, 7)),
    ("ij->i", (19, 37)),
    ("ij->ji", (19, 37)),
    ("ii->i", (9, 9)),
    ("i->ii", (9,)),
    ("ij,jk->kik", (5, 6), (6, 7)),
    ("ij,jk->ik", (5, 0), (0, 7)),
    ("ij,jk->ik", (0, 5), (5, 7)),
    ("ij,ij->ij", (1, 7), (5, 1)),
]
SCALES = [(1, 0), (-0.5, 0), (1, 1), (2, -0.5), (0, 1), (0, 0)]
WRITABLE = [layout for layout in LAYOUTS if layout.__name__ != "expanded"]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
REFUSED = (ValueError, RuntimeError)


def operands_of(shapes, device, dtype=torch.float64):
    return [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]


@pytest.mark.parametrize("layout", WRITABLE, ids=lambda layout: layout.__name__)
@each_case
def test_out_with_any_strides(device, case, layout):
    equation, *shapes = case
    operands = operands_of(shapes, device)
    shape = reference(equation, *operands).shape
    for alpha, beta in SCALES:
        out = torch.randn(shape, dtype=torch.float64, device=device)
        out = layout(out) if shape else out
        expected = reference(equation, *operands, alpha=alpha, beta=beta, out=out)
        strides, pointer = out.stride(), out.data_ptr()
        assert pyext.einsum(equation, *operands, out=out, alpha=alpha, beta=beta) is out
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
        assert (out.stride(), out.data_ptr()) == (strides, pointer)


@each_case
def test_what_lies_around_out_is_left_alone(device, case):
    equation, *shapes = case
    operands = operands_of(shapes, device, torch.float32)
    shape = reference(equation, *operands).shape
    for order in (list(range(len(shape))), list(range(len(shape)))[::-1]):
        room = torch.full([2 * n + 3 for n in shape], math.pi, device=device).permute(order)
        room = room.permute(order)
        inside = tuple(slice(2, 2 + 2 * n, 2) for n in shape)
        before = room.clone()
        before[inside] = 0
        pyext.einsum(equation, *operands, out=room[inside])
        room[inside] = 0
        assert torch.equal(room, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@each_case
def test_out_is_not_read_with_beta_0(device, case, dtype):
    equation, *shapes = case
    operands = operands_of(shapes, device, dtype)
    expected = pyext.einsum(equation, *operands)
    for value in (math.nan, math.inf):
        out = torch.full_like(expected, value)
        pyext.einsum(equation, *operands, out=out)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_case
def test_half_types_with_beta_are_rounded_once(device, case, dtype):
    """The numbers are whole, and those of the sum too large for half types."""
    equation, *shapes = case
    operands = [torch.randint(-40, 40, shape).to(device, dtype) for shape in shapes]
    shape = reference(equation, *operands).shape
    out = torch.randint(-100, 100, shape).to(device, dtype)
    expected = reference(equation, *operands, beta=3, out=out)
    if expected.numel() and expected.abs().max() < torch.finfo(dtype).max:
        pyext.einsum(equation, *operands, beta=3, out=out)
        assert torch.equal(out, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
@each_case
def test_integers(device, case, dtype):
    equation, *shapes = case
    info = torch.iinfo(dtype)
    operands = [torch.randint(info.min, info.max, shape).to(device, dtype) for shape in shapes]
    out = pyext.einsum(equation, *operands).clone()
    expected = reference(equation, *operands, alpha=3, beta=-7, out=out).to(out.dtype)
    pyext.einsum(equation, *operands, alpha=3, beta=-7, out=out)
    assert torch.equal(out, expected)


def test_complex_scales(device):
    x, y = operands_of([(5, 6), (6, 7)], device, torch.complex128)
    for equation, *operands in (("ij,jk->ki", x, y), ("ij,ij->i", x, x.conj()), ("ij->ji", x)):
        out = torch.randn_like(reference(equation, *operands))
        options = {"alpha": 2 - 1j, "beta": 0.5 + 3j}
        expected = reference(equation, *operands, out=out, **options)
        pyext.einsum(equation, *operands, out=out, **options)
        torch.testing.assert_close(out, expected)


def test_a_product_with_itself_into_what_is_not_symmetric(device):
    x = torch.randn(2, 50, 33, dtype=torch.float64, device=device)
    out = torch.randn(2, 50, 50, dtype=torch.float64, device=device)
    expected = reference("bdn,ben->bde", x, x, alpha=2, beta=3, out=out)
    pyext.einsum("bdn,ben->bde", x, x, alpha=2, beta=3, out=out)
    torch.testing.assert_close(out, expected)


def test_out_of_a_conjugate_view(device):
    """Its memory holds the conjugates."""
    x, y = operands_of([(5, 6), (6, 7)], device, torch.complex128)
    memory = torch.zeros(5, 7, dtype=torch.complex128, device=device)
    pyext.einsum("ij,jk->ik", x, y, out=memory.conj())
    torch.testing.assert_close(memory, reference("ij,jk->ik", x, y).conj().resolve_conj())


def test_the_plan_writes_out(device):
    x, y = operands_of([(5, 6), (6, 7)], device)
    plan = pyext.einsum_plan("ij,jk->ki", x, y)
    out = torch.empty(5, 7, dtype=torch.float64, device=device).T
    assert plan(x, y, out=out) is out
    torch.testing.assert_close(out, reference("ij,jk->ki", x, y))


def test_out_may_share_the_storage_of_operands_where_it_does_not_overlap(device):
    room = torch.randn(6, 18, dtype=torch.float64, device=device)
    for x, y, out in (room.view(3, 6, 6), room.split(6, 1), (room[:, i::3] for i in range(3))):
        expected = x @ y
        pyext.einsum("ij,jk->ik", x, y, out=out)
        torch.testing.assert_close(out, expected)


def refused(message, *args, out, **kwargs):
    """Nothing is changed by a call that raises."""
    before, shape, version = out.clone(), out.shape, out._version
    with pytest.raises(REFUSED, match=f"(?s)^einsum.*{message}"):
        pyext.einsum(*args, out=out, **kwargs)
    assert torch.equal(out, before)
    assert (out.shape, out._version) == (shape, version)


@pytest.mark.parametrize("shape", [(0,), (3, 3), (2, 3, 1), (6,), (1, 1), ()])
def test_out_of_another_shape_is_refused(device, shape):
    x, y = torch.ones(2, 4, device=device), torch.ones(4, 3, device=device)
    refused(r"shape.*\[?2, 3\]?", "ij,jk->ik", x, y, out=torch.ones(shape, device=device))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.complex64])
def test_out_of_another_dtype_is_refused(device, dtype):
    x, y = torch.ones(2, 4, device=device), torch.ones(4, 3, device=device)
    refused("dtype", "ij,jk->ik", x, y, out=torch.ones(2, 3, dtype=dtype, device=device))


def test_out_on_another_device_is_refused(device):
    x, y = torch.ones(2, 4, device=device), torch.ones(4, 3, device=device)
    with pytest.raises(REFUSED):
        pyext.einsum("ij,jk->ik", x, y, out=torch.ones(2, 3, device="meta"))


def test_out_that_overlaps_an_operand_is_refused(device):
    room = torch.rand(100, device=device)
    x = room[:36].view(6, 6)
    y = torch.rand(6, 6, device=device)
    for out in (x, x.T, room[30:66].view(6, 6), room.as_strided((6, 6), (12, 2))):
        refused("overlap", "ij,jk->ik", x, y, out=out)
        refused("overlap", "ij,jk->ik", y, x, out=out)
        refused("overlap", "ij,ij->ij", x, y, out=out)
    refused("overlap", "ij->ji", x, out=x)
    refused("overlap", "ij,jk->ik", y, y, beta=1, out=y)


def test_out_that_overlaps_itself_is_refused(device):
    x, y = torch.ones(6, 6, device=device), torch.ones(6, 6, device=device)
    for out in (
        torch.rand(6, 1, device=device).expand(6, 6),
        torch.rand(100, device=device).as_strided((6, 6), (1, 1)),
        torch.rand(100, device=device).as_strided((6, 6), (3, 1)),
    ):
        refused("", "ij,jk->ik", x, y, out=out)
