"""What is particular to matrix_sqrt_pool: that it is a square root, and what it keeps."""

import copy

import pytest
import torch

import pyext
from tests.memory import peak_bytes
from tests.samples.matrix_sqrt_pool import native as eager


def covariance(x: torch.Tensor) -> torch.Tensor:
    x = x - x.mean(2, keepdim=True)
    return x @ x.mT / x.shape[2]


def features(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("d", "s"), [(1, 5), (4, 30), (17, 90), (70, 400)])
def test_many_iterations_give_the_root_by_eigenvalues(d, s):
    x = features(2, d, s)
    values, vectors = torch.linalg.eigh(covariance(x))
    expected = vectors * values.clamp(min=0).sqrt().unsqueeze(1) @ vectors.mT
    actual = pyext.matrix_sqrt_pool(x, iterations=30, packed=False)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(actual @ actual, covariance(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_each_iteration_is_that_of_the_paper(iterations):
    x = features(2, 9, 30)
    trace = covariance(x).diagonal(dim1=1, dim2=2).sum(1).view(2, 1, 1)
    values, vectors = torch.linalg.eigh(covariance(x) / trace)
    y, z = values, torch.ones_like(values)
    for _ in range(iterations):  # the same on eigenvalues
        t = (3 - z * y) / 2
        y, z = y * t, t * z
    expected = trace.sqrt() * (vectors * y.unsqueeze(1) @ vectors.mT)
    torch.testing.assert_close(pyext.matrix_sqrt_pool(x, iterations, packed=False), expected)


def test_packed_results_unpack_to_the_matrices():
    x = features(3, 21, 50)
    full = pyext.matrix_sqrt_pool(x, packed=False)
    assert torch.equal(full, full.mT)
    torch.testing.assert_close(pyext.unpack_symmetric(pyext.matrix_sqrt_pool(x)), full)


@pytest.mark.parametrize("value", [0.0, 0.5, 1e-30, 1e12])
def test_gradients_are_finite_where_nothing_varies(value):
    x = torch.full((2, 5, 7), value, requires_grad=True)
    pyext.matrix_sqrt_pool(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("mean", [0.0, 10.0, 300.0])
def test_features_far_from_zero_cost_no_more_precision_than_in_torch(mean):
    x = (features(4, 19, 60) + mean).float().requires_grad_()
    cotangent = torch.linspace(-1, 1, 4 * 190).view(4, 190)

    def gradient(function, x):
        return torch.autograd.grad(function(x), x, cotangent.to(x.dtype))[0]

    exact = gradient(eager, x.double())
    ours, theirs = (
        (gradient(f, x) - exact).square().mean().sqrt() for f in (pyext.matrix_sqrt_pool, eager)
    )
    assert ours <= 1.5 * theirs


def test_few_samples_and_many_give_the_same_bits():
    """Few are computed one after the other on all threads, many on one thread each."""
    x = features(5, 100, 60).float()
    together = pyext.matrix_sqrt_pool(x)
    for i in range(5):
        assert torch.equal(pyext.matrix_sqrt_pool(x[i : i + 1])[0], together[i])


def test_no_iterate_is_kept_or_allocated_per_sample():
    x = features(64, 64, 9).float().requires_grad_()

    def forward_and_backward():
        result = pyext.matrix_sqrt_pool(x, iterations=7)
        return torch.autograd.grad(result, x, torch.ones_like(result))

    result = pyext.matrix_sqrt_pool(x)
    # The result, its cotangent, the gradient, and a handful of matrices for each thread.
    matrices = 12 * torch.get_num_threads() * 64 * (64 + 16) * 4
    features_less_mean = 64 * 64 * 4
    budget = 2 * result.nbytes + x.nbytes + matrices + features_less_mean + (2 << 20)
    assert peak_bytes(forward_and_backward, "cpu") <= budget < 7 * 64 * 64 * 64 * 4


def test_the_module_is_the_function():
    module = pyext.nn.MatrixSqrtPooling(3, packed=False)
    x = features(2, 6, 4, 5)
    assert torch.equal(copy.deepcopy(module)(x), pyext.matrix_sqrt_pool(x, 3, packed=False))
    assert "iterations=3" in repr(module)
