// signed_sqrt: sign(x) * sqrt(|x| + eps), the square root that keeps the sign.
//
// Bilinear pooling takes it of every entry of a Gram matrix (Lin, RoyChowdhury and Maji 2015,
// "Bilinear CNN Models for Fine-grained Visual Recognition"); eps keeps the derivative finite.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernel_stub.h"
#include "math.h"

namespace at {
struct TensorIteratorBase;
}

namespace pyext {

// The formula. sign(0) = 0, and a zero keeps its sign; NaN stays NaN. T: a scalar or Vectorized.
template <typename T>
PYEXT_HOST_DEVICE T signed_sqrt_value(const T& x, const T& eps) {
  const T zero(0);
  const T root = square_root(absolute(x) + eps);
  return where(x == zero, x, where(x < zero, zero - root, root));
}

// The gradient from that of the result y: grad / (2 |y|), and 0 where y = 0 since sign(0) = 0. One
// division, rounded once: 2 |y| is exact.
template <typename T>
PYEXT_HOST_DEVICE T signed_sqrt_gradient(const T& grad, const T& y) {
  const T zero(0);
  return where(y == zero, zero, grad / (absolute(y) + absolute(y)));
}

// The ops, through the dispatcher, for C++ callers.
at::Tensor signed_sqrt(const at::Tensor& self, double eps);
at::Tensor& signed_sqrt_(at::Tensor& self, double eps);
at::Tensor& signed_sqrt_out(const at::Tensor& self, double eps, at::Tensor& out);
at::Tensor signed_sqrt_backward(const at::Tensor& grad, const at::Tensor& result);

// The kernels, filled per device.
extern KernelStub<void(at::TensorIteratorBase&, double)> signed_sqrt_stub;
extern KernelStub<void(at::TensorIteratorBase&)> signed_sqrt_backward_stub;

}  // namespace pyext
