"""signed_sqrt: sign(x) sqrt(|x| + eps)."""

import math

import pytest
import torch

import pyext
from tests.entry import FLOATING
from tests.layouts import laid_out
from tests.references.signed_sqrt import signed_sqrt as reference


def test_squares_give_their_roots(device):
    x = torch.tensor([-9.0, -4.0, 0.0, 1.0, 16.0], device=device)
    assert pyext.signed_sqrt(x, eps=0.0).tolist() == [-3, -2, 0, 1, 4]


def test_eps_is_under_the_root(device):
    x = torch.tensor([-3.0, 3.0], device=device)
    assert pyext.signed_sqrt(x, eps=1.0).tolist() == [-2, 2]
    assert pyext.signed_sqrt(x).tolist() == pytest.approx([-math.sqrt(3), math.sqrt(3)], abs=1e-5)


def test_zero_stays_zero_and_keeps_its_sign(device):
    y = pyext.signed_sqrt(torch.tensor([0.0, -0.0], device=device), eps=0.5)
    assert y.tolist() == [0, 0]
    assert y.signbit().tolist() == [False, True]


def test_infinities_and_nan(device):
    y = pyext.signed_sqrt(torch.tensor([math.inf, -math.inf, math.nan], device=device))
    assert y[:2].tolist() == [math.inf, -math.inf]
    assert y[2].isnan()


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_the_derivative_at_zero_is_zero(device, eps):
    """sign(0) = 0 makes it so; without it, eps = 0 would give inf * 0."""
    x = torch.zeros(3, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(pyext.signed_sqrt(x, eps).sum(), x, create_graph=True)
    assert gradient.tolist() == [0, 0, 0]
    assert torch.autograd.grad(gradient.sum(), x)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", FLOATING)
def test_the_result_of_an_element_does_not_depend_on_its_place(device, dtype):
    """Vector bodies and scalar tails run the same formula."""
    x = torch.randn(71).to(device, dtype)
    one_by_one = torch.stack([pyext.signed_sqrt(element) for element in x])
    for length in range(len(x) + 1):
        assert torch.equal(pyext.signed_sqrt(x[:length]), one_by_one[:length])
    assert torch.equal(pyext.signed_sqrt(x[::2]), one_by_one[::2])


# More than 32 MB are written past the caches, from the first aligned place on.
@pytest.mark.parametrize(
    ("dtype", "offset"), [(torch.float32, 0), (torch.float32, 3), (torch.bfloat16, 7)]
)
def test_a_large_result_is_that_of_its_parts(device, dtype, offset):
    size = (33 << 20) // dtype.itemsize + 5
    x = torch.randn(size, device=device).to(dtype)
    parts = torch.cat([pyext.signed_sqrt(part) for part in x.split(1 << 16)])
    assert torch.equal(pyext.signed_sqrt(x), parts)
    room = torch.full((offset + size + 3,), 9, dtype=dtype, device=device)
    out = room[offset : offset + size]
    assert torch.equal(pyext.signed_sqrt(x, out=out), parts)
    assert int((room == 9).sum()) == offset + 3 + int((parts == 9).sum())


def test_half_types_are_rounded_once(device):
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.randn(1000).to(device, dtype)
        assert torch.equal(pyext.signed_sqrt(x), pyext.signed_sqrt(x.float()).to(dtype))
        assert torch.equal(pyext.signed_sqrt(x), reference(x.double()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_integers_are_computed_in_the_default_dtype(device, dtype, default):
    torch.set_default_dtype(default)
    x = torch.tensor([0, 1, 4], device=device).to(dtype)
    y = pyext.signed_sqrt(x, eps=0.0)
    assert y.dtype == default
    assert torch.equal(y, torch.sqrt(x))


def test_in_place_on_integers_raises_and_changes_nothing(device):
    x = torch.tensor([4, 9], device=device)
    with pytest.raises(RuntimeError, match="can't be cast"):
        pyext.signed_sqrt_(x)
    assert x.tolist() == [4, 9]


def test_strides_follow_the_rules_of_torch(device):
    for name, x in laid_out(torch.randn(2, 3, 4, 5, device=device)):
        assert pyext.signed_sqrt(x).stride() == torch.sqrt(x.abs()).stride(), name


def test_out_may_be_wider(device):
    x = torch.tensor([4.0, 9.0], device=device)
    out = torch.empty(2, dtype=torch.float64, device=device)
    assert torch.equal(pyext.signed_sqrt(x, 0.0, out=out), torch.tensor([2.0, 3.0]).to(out))


def test_out_of_another_shape_is_resized_as_by_torch(device):
    out = torch.empty(5, device=device)
    pyext.signed_sqrt(torch.tensor([4.0, 9.0], device=device), 0.0, out=out)
    assert out.tolist() == [2, 3]


def test_out_may_be_strided(device):
    x = torch.rand(3, 4, device=device)
    for _, out in laid_out(torch.zeros(3, 4, device=device)):
        if 0 in out.stride():
            continue
        strides = out.stride()
        assert pyext.signed_sqrt(x, out=out) is out
        assert torch.equal(out, pyext.signed_sqrt(x))
        assert out.stride() == strides


def test_more_than_two_to_the_31_elements_apart():
    """A view whose rows lie further apart than 32 bits can count; only their pages are touched."""
    try:
        room = torch.empty(3 * 2**30 + 100, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no room for 6 GiB of addresses: {error}")
    x = room.as_strided((4, 100), (2**30, 1)).copy_(torch.randn(4, 100))
    expected = pyext.signed_sqrt(x.clone())
    assert torch.equal(pyext.signed_sqrt(x), expected)
    pyext.signed_sqrt_(x)
    assert torch.equal(x, expected)
