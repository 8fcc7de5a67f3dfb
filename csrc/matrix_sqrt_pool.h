// matrix_sqrt_pool: the matrix square root of a covariance by Newton-Schulz iterations.
//
//   C = X (I - 11^T / S) X^T / S,  A = C / tr C,  Y = A, Z = I;  then `iterations` times
//   T = (3 I - Z Y) / 2,  Y = Y T,  Z = T Z;  and the result is sqrt(tr C) Y.
//
// Li, Xie, Wang and Gao 2018, "Towards Faster Training of Global Covariance Pooling Networks by
// Iterative Matrix Square Root Normalization" (arXiv 1712.01034). Every matrix is a polynomial in
// A: symmetric, and they commute, so a product is computed by one triangle. The map from A to Y is
// its own adjoint for the same reason, so the gradient is the derivative of the iterations in the
// direction of the cotangent: symmetric products again, and nothing of the forward pass is kept.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernel_stub.h"

namespace pyext {

constexpr double kLeastTrace = 1e-12;  // what the trace is taken to be at least

// The ops, through the dispatcher, for C++ callers. x (N, D, S); the result (N, D, D), or packed
// (N, D (D + 1) / 2): the upper triangle, row by row, off-diagonal values times sqrt(2).
at::Tensor matrix_sqrt_pool(const at::Tensor& x, int64_t iterations, bool packed);
at::Tensor matrix_sqrt_pool_backward(const at::Tensor& grad, const at::Tensor& x,
                                     const at::Tensor& result, int64_t iterations, bool packed);

// The kernels, filled per device. `out` and `grad_x` are contiguous and fresh, the others have any
// strides.
extern KernelStub<void(const at::Tensor& out, const at::Tensor& x, int64_t iterations, bool packed)>
    matrix_sqrt_pool_stub;
extern KernelStub<void(const at::Tensor& grad_x, const at::Tensor& grad, const at::Tensor& x,
                       const at::Tensor& result, int64_t iterations, bool packed)>
    matrix_sqrt_pool_backward_stub;

}  // namespace pyext
