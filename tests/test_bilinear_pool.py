"""What is particular to bilinear_pool: packed triangles, zeros, and what is never in memory."""

import copy

import pytest
import torch
import torch.nn.functional as F

import pyext
from tests.memory import peak_bytes


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("normalize", [(), ("l2",), ("signed_sqrt", "l2")])
def test_packed_results_have_the_inner_products_of_the_matrices(normalize):
    x = features(5, 13, 9)
    full = pyext.bilinear_pool(x, normalize=normalize).flatten(1)
    packed = pyext.bilinear_pool(x, normalize=normalize, packed=True)
    assert packed.shape == (5, 13 * 14 // 2)
    torch.testing.assert_close(packed @ packed.T, full @ full.T)


@pytest.mark.parametrize("d", [1, 2, 13, 67])
def test_unpacking_gives_the_matrices_back(d):
    x = features(3, d, 9)
    full = pyext.bilinear_pool(x)
    torch.testing.assert_close(
        pyext.unpack_symmetric(pyext.bilinear_pool(x, packed=True)), full, rtol=1e-14, atol=1e-16
    )
    assert torch.equal(full, full.mT)


def test_unpacking_takes_any_leading_axes_and_refuses_what_is_no_triangle():
    assert pyext.unpack_symmetric(torch.rand(6)).shape == (3, 3)
    assert pyext.unpack_symmetric(torch.rand(2, 4, 10)).shape == (2, 4, 4, 4)
    with pytest.raises(ValueError, match=r"D \(D \+ 1\) / 2.*\[2, 5\]"):
        pyext.unpack_symmetric(torch.rand(2, 5))


def test_unpacking_has_derivatives_and_compiles():
    x = features(2, 10).requires_grad_()
    assert torch.autograd.gradcheck(pyext.unpack_symmetric, x)
    compiled = torch.compile(pyext.unpack_symmetric, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), pyext.unpack_symmetric(x))


def test_images_of_any_layout_are_pooled_without_a_copy():
    x = features(4, 32, 24, 24, dtype=torch.float32)
    expected = pyext.bilinear_pool(x)
    nhwc = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(pyext.bilinear_pool(nhwc), expected)
    torch.testing.assert_close(pyext.bilinear_pool(x.flatten(2)), expected, rtol=0, atol=0)
    bytes_ = peak_bytes(lambda: pyext.bilinear_pool(nhwc), "cpu")
    assert bytes_ <= expected.nbytes + 1024 < x.nbytes


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"center": True}, {"eps": 0.0}])
@pytest.mark.parametrize("value", [0.0, 0.5, 1e-30, 1e15])
def test_gradients_are_finite_where_nothing_varies(value, options):
    x = torch.full((2, 5, 7), value, requires_grad=True)
    pyext.bilinear_pool(x, **options).sum().backward()
    assert x.grad.isfinite().all()


def test_nothing_is_left_of_one_position_less_its_mean():
    x = features(3, 7, 1).requires_grad_()
    result = pyext.bilinear_pool(x, center=True)
    assert not result.any()
    assert not torch.autograd.grad(result.sum(), x)[0].any()


@pytest.mark.parametrize("mean", [0.0, 10.0, 300.0])
def test_centering_far_from_zero_is_as_precise_as_in_torch(mean):
    x = (features(4, 19, 49).abs().cumsum(2) / 20 + mean).float().requires_grad_()
    cotangent = features(4, 19, 19, seed=1).float()

    def gradient(function, x):
        return torch.autograd.grad(function(x), x, cotangent.to(x.dtype))[0]

    def eager(x):
        z = x - x.mean(2, keepdim=True)
        z = torch.bmm(z, z.mT) / x.shape[2]
        z = z.sign() * torch.sqrt(z.abs() + 1e-5)
        return F.normalize(z.flatten(1)).view_as(z)

    exact = gradient(eager, x.double())
    ours, theirs = (
        (gradient(f, x) - exact).square().mean().sqrt()
        for f in (lambda x: pyext.bilinear_pool(x, center=True), eager)
    )
    assert ours <= 1.5 * theirs


def test_the_order_of_normalizations_is_no_choice():
    x = features(2, 5, 9)
    expected = pyext.bilinear_pool(x)
    for normalize in (["l2", "signed_sqrt"], {"l2", "signed_sqrt"}, ("l2", "signed_sqrt", "l2")):
        assert torch.equal(pyext.bilinear_pool(x, normalize=normalize), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_rounded_once(dtype):
    x = features(3, 40, 50, dtype=dtype).abs()
    exact = pyext.bilinear_pool(x.double())
    torch.testing.assert_close(
        pyext.bilinear_pool(x).double(), exact, rtol=torch.finfo(dtype).eps / 2 + 1e-6, atol=1e-7
    )


def test_backward_forms_no_matrix_of_channels():
    x = features(16, 256, 9, dtype=torch.float32).requires_grad_()
    result = pyext.bilinear_pool(x)
    grad = torch.ones_like(result)
    bytes_ = peak_bytes(lambda: torch.autograd.grad(result, x, grad, retain_graph=True), "cpu")
    assert bytes_ <= x.nbytes + 4096 < result.nbytes


def test_under_autocast_features_are_narrowed_as_for_matrix_products():
    x = features(2, 8, 9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert pyext.bilinear_pool(x).dtype == torch.bmm(x, x.mT).dtype == torch.bfloat16


def test_the_module_is_the_function():
    module = pyext.nn.BilinearPooling(packed=True, center=True, scale=0.5, eps=1e-3)
    x = features(2, 6, 3, 4)
    expected = pyext.bilinear_pool(x, packed=True, center=True, scale=0.5, eps=1e-3)
    assert torch.equal(copy.deepcopy(module)(x), expected)
    assert "packed=True" in repr(module)
    y = features(2, 5, 3, 4)
    assert torch.equal(pyext.nn.BilinearPooling()(x, y), pyext.bilinear_pool(x, y))


def test_it_is_what_users_write():
    x = features(3, 20, 6, 7).abs()
    flat = x.flatten(2)
    gram = torch.bmm(flat, flat.mT) / 42
    root = torch.sign(gram) * torch.sqrt(gram.abs() + 1e-5)
    torch.testing.assert_close(pyext.bilinear_pool(x).flatten(1), F.normalize(root.flatten(1)))
