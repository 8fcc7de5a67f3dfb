"""einsum: plans and their cache, and sizes that 31 bits cannot count."""

import itertools

import pytest
import torch

import pyext
from tests.layouts import LAYOUTS
from tests.references.einsum import einsum as reference
from tests.registry import GPUS


def test_plan(device):
    x, y, z = (torch.randn(shape, device=device) for shape in [(4, 3), (3, 5), (5, 2)])
    expected = pyext.einsum("ij,jk,kl->il", x, y, z)
    for plan in (
        pyext.einsum_plan("ij,jk,kl->il", x, y, z),
        pyext.einsum_plan("ij,jk,kl->il", (4, 3), (3, 5), (5, 2)),
    ):
        for _ in range(2):
            torch.testing.assert_close(plan(x, y, z), expected)
        torch.testing.assert_close(plan(x + 1, y, z), pyext.einsum("ij,jk,kl->il", x + 1, y, z))
        with pytest.raises((ValueError, RuntimeError), match="einsum"):
            plan(x, y, z[:, :1])
        with pytest.raises((ValueError, RuntimeError), match="einsum"):
            plan(x, y)


def test_what_a_plan_says():
    plan = pyext.einsum_plan("ij,jk->ik", (3, 4), (4, 5))
    assert plan.flops == 2 * 3 * 4 * 5
    assert plan.bytes == 4 * (3 * 4 + 4 * 5 + 3 * 5)
    assert plan.peak_bytes == 4 * 3 * 5
    assert "ij,jk->ik" in str(plan)

    right_to_left = pyext.einsum_plan("ij,jk,k->i", (99, 98), (98, 97), (97,))
    assert right_to_left.flops == 2 * (98 * 97 + 99 * 98)
    assert right_to_left.peak_bytes >= 4 * (98 + 99)
    text = str(right_to_left)
    assert text.index("jk,k->j") < text.index("ij,j->i" if "ij,j->i" in text else "j,ij->i")

    huge = pyext.einsum_plan("ij,jk->ik", (2**20, 2**20), (2**20, 2**20))
    assert huge.flops == 2**61
    assert huge.peak_bytes == 2**42


@pytest.mark.parametrize("device", ["cpu", *GPUS])
def test_indices_beyond_31_bits(device):
    """Rows that lie 2 GiB apart, in storage of which only their pages are touched."""
    try:
        room = torch.empty(3 * 2**30 + 100, dtype=torch.bfloat16, device=device)
        out = torch.empty(3 * 2**30 + 100, dtype=torch.bfloat16, device=device)
    except RuntimeError as error:
        pytest.skip(f"no room for 12 GiB of addresses: {error}")
    x = room.as_strided((4, 100), (2**30, 1)).copy_(torch.randint(-2, 3, (4, 100)))
    out = out.as_strided((4, 4), (2**30, 1))
    near = x.clone()
    for equation, other in (
        ("ij,kj->ik", near),
        ("ij,kj->ki", x),
        ("ij,ij->i", x),
        ("ij->i", None),
    ):
        operands = [x] if other is None else [x, other]
        expected = reference(equation, *operands).to(torch.bfloat16)
        assert torch.equal(pyext.einsum(equation, *operands), expected)
        into = out if expected.dim() == 2 else out[:, 0]
        assert torch.equal(pyext.einsum(equation, *operands, out=into), expected)


def test_sizes_beyond_31_bits(device):
    many = torch.ones(1, device=device).expand(2**40)
    none = torch.ones(0, device=device)
    assert pyext.einsum("i,j->ji", many, none).shape == (0, 2**40)
    assert pyext.einsum("i,j->j", many, none).shape == (0,)
    assert pyext.einsum("ij->ji", many.expand(3, 2**40)).shape == (2**40, 3)


EQUATIONS = ["ij,jk->ik", "ij,jk->ki", "ij,ji->ij", "ij,ij->i", "ij,ij->", "ij,jk->", "ij,kj->ik"]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_the_cache_tells_strides_and_dtypes_apart(device, equation):
    x = torch.randint(-4, 5, (6, 6), device=device)
    dtypes = (torch.float32, torch.float64, torch.int32, torch.complex64)
    for _, dtype in itertools.product(range(2), dtypes):
        for first, second in itertools.product(LAYOUTS, LAYOUTS):
            a, b = first(x.to(dtype)), second(x.T.to(dtype))
            result = pyext.einsum(equation, a, b)
            assert torch.equal(result, reference(equation, a, b).to(dtype))


def test_the_cache_tells_shapes_apart(device):
    for _ in range(2):
        for m, n, k in itertools.product((0, 1, 2, 7), repeat=3):
            x, y = torch.ones(m, k, device=device), torch.ones(k, n, device=device)
            assert torch.equal(pyext.einsum("ij,jk->ik", x, y), x @ y)
            assert torch.equal(pyext.einsum("i...,...k->ik", x, y), x @ y)
        for shape in ((1, 6), (6, 1), (6, 6)):
            x, y = torch.ones(shape, device=device), torch.ones(6, 6, device=device)
            assert torch.equal(pyext.einsum("ij,ij->ij", x, y), y)


@pytest.mark.parametrize("equation", ["bdn,ben->bde", "bnd,bne->bde", "bdn,ben->bed", "bdn,ben->"])
def test_the_cache_tells_a_tensor_with_itself_from_two_tensors(device, equation):
    x, y = torch.randn(2, 2, 50, 50, dtype=torch.complex128, device=device)
    near = x.clone()
    real = near.real, y.real.clone()
    for _ in range(2):
        for a, b in (
            (x, x),
            (x, y),
            (x, x.clone()),
            (x, x.conj()),  # the same memory, and Hermitian instead of symmetric
            (x, x.mT),
            (near, near),
            (near, near.conj()),
            (near[:, :20, :20], near[:, 20:40, 20:40]),
            (real[0], real[0]),
            (real[0], torch._neg_view(real[0])),
            (real[0], real[1]),
            (real[0], near.imag),
        ):
            expected = reference(equation, a, b)
            torch.testing.assert_close(pyext.einsum(equation, a, b), expected)


def test_the_cache_tells_options_apart(device):
    x = torch.randint(-4, 5, (6, 6), device=device).double()
    for _ in range(2):
        for alpha in (1, 2, -0.5):
            for beta in (0, 1, 0.5):
                out = torch.ones_like(x)
                expected = reference("ij,kj->ik", x, x, alpha=alpha, beta=beta, out=out)
                result = pyext.einsum("ij,kj->ik", x, x, alpha=alpha, beta=beta, out=out)
                assert torch.equal(result, expected)
            result = pyext.einsum("ij,kj->ik", x, x, alpha=alpha, layout="any")
            assert torch.equal(result, reference("ij,kj->ik", x, x, alpha=alpha))


def test_plans_outlive_many_others(device):
    """More plans than a cache would hold."""
    x = torch.ones(3, 3, device=device)
    for n in range(1, 2000):
        y = torch.ones(3, n, device=device)
        assert pyext.einsum("ij,jk->k", x, y).shape == (n,)
    assert torch.equal(pyext.einsum("ij,jk->ik", x, x), x @ x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("bdn,ben->bde", (3, 200, 77)),
        ("nd,ne->de", (133, 150)),
        ("dn,en->ed", (257, 30)),
        ("bijn,bkln->bikjl", (2, 13, 14, 31)),
        ("bijn,bkln->bklij", (2, 13, 14, 31)),
    ],
)
def test_a_symmetric_result_is_computed_by_one_triangle(device, equation, shape, dtype):
    x = torch.randint(-8, 9, shape, device=device).to(dtype)  # whose sums are exact in any order
    assert "triangle" in str(pyext.einsum_plan(equation, x, x))
    assert "triangle" not in str(pyext.einsum_plan(equation, x, x.clone()))
    expected = pyext.einsum(equation, x, x.clone())
    assert torch.equal(pyext.einsum(equation, x, x), expected)
    if dtype.is_floating_point:
        room = torch.ones([size + 1 for size in expected.shape], dtype=dtype, device=device)
        out = room[tuple(slice(size) for size in expected.shape)]
        wanted = 0.5 * expected - 2 * out
        torch.testing.assert_close(
            pyext.einsum(equation, x, x, out=out, alpha=0.5, beta=-2), wanted
        )


@pytest.mark.parametrize("seed", range(6))
def test_more_indices_than_a_kernel_takes(device, seed):
    """As in tensor networks: many dimensions of two values each, which do not merge."""
    order = torch.Generator().manual_seed(seed)
    shuffled = ["abcdefghijklmnopqr"[i] for i in torch.randperm(18, generator=order)]
    left, right = shuffled[: 16 + seed % 3], shuffled[10:]
    output = [x for x in sorted(shuffled) if torch.rand(1, generator=order) < 0.15 * seed]
    x, y = (torch.randn([2] * len(t), dtype=torch.float64, device=device) for t in (left, right))
    x = x.permute(torch.randperm(x.dim(), generator=order).tolist())
    equation = f"{''.join(left)},{''.join(right)}->{''.join(output)}"
    torch.testing.assert_close(pyext.einsum(equation, x, y), torch.einsum(equation, x, y))
