// matrix_sqrt_pool: checks, outputs and device entries. The kernels are in csrc/cpu and cuda.
#include "matrix_sqrt_pool.h"

#include <ATen/DeviceGuard.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "packed_triangle.h"
#include "pooling_checks.h"
#include "result_memory.h"

namespace pyext {

KernelStub<void(const at::Tensor&, const at::Tensor&, int64_t, bool)> matrix_sqrt_pool_stub(
    "matrix_sqrt_pool");
KernelStub<void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t,
                bool)>
    matrix_sqrt_pool_backward_stub("matrix_sqrt_pool_backward");

namespace {

void check_arguments(const at::Tensor& x, int64_t iterations) {
  check_features("matrix_sqrt_pool", x);
  TORCH_CHECK_VALUE(iterations >= 1, "matrix_sqrt_pool: expected iterations >= 1, got ",
                    iterations);
}

at::Tensor matrix_sqrt_pool_entry(const at::Tensor& x, int64_t iterations, bool packed) {
  check_arguments(x, iterations);
  const at::OptionalDeviceGuard guard(at::device_of(x));
  const int64_t batch = x.size(0), rows = x.size(1);
  auto out = packed ? empty_result({batch, packed_size(rows)}, x.options())
                    : empty_result({batch, rows, rows}, x.options());
  if (batch == 0) return out;
  matrix_sqrt_pool_stub(x.device().type(), out, x, iterations, packed);
  return out;
}

at::Tensor matrix_sqrt_pool_backward_entry(const at::Tensor& grad, const at::Tensor& x,
                                           const at::Tensor& result, int64_t iterations,
                                           bool packed) {
  check_arguments(x, iterations);
  TORCH_CHECK_VALUE(grad.sizes() == result.sizes(),
                    "matrix_sqrt_pool_backward: expected grad of shape ", result.sizes(), ", got ",
                    grad.sizes());
  const at::OptionalDeviceGuard guard(at::device_of(x));
  auto grad_x = fresh_gradient(x);
  if (x.size(0) == 0) return grad_x;
  matrix_sqrt_pool_backward_stub(x.device().type(), grad_x, grad, x, result, iterations, packed);
  return grad_x;
}

void register_matrix_sqrt_pool(torch::Library& m) {
  m.impl("matrix_sqrt_pool", matrix_sqrt_pool_entry);
  m.impl("matrix_sqrt_pool_backward", matrix_sqrt_pool_backward_entry);
}

TORCH_LIBRARY_IMPL(pyext, CPU, m) { register_matrix_sqrt_pool(m); }
TORCH_LIBRARY_IMPL(pyext, CUDA, m) { register_matrix_sqrt_pool(m); }

}  // namespace

at::Tensor matrix_sqrt_pool(const at::Tensor& x, int64_t iterations, bool packed) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyext::matrix_sqrt_pool", "")
                             .typed<decltype(matrix_sqrt_pool)>();
  return op.call(x, iterations, packed);
}

at::Tensor matrix_sqrt_pool_backward(const at::Tensor& grad, const at::Tensor& x,
                                     const at::Tensor& result, int64_t iterations, bool packed) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyext::matrix_sqrt_pool_backward", "")
                             .typed<decltype(matrix_sqrt_pool_backward)>();
  return op.call(grad, x, result, iterations, packed);
}

}  // namespace pyext
