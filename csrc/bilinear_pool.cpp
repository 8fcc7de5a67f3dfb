// bilinear_pool: checks, outputs and device entries. The kernels are in csrc/cpu and cuda.
#include "bilinear_pool.h"

#include <ATen/DeviceGuard.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "arithmetic.h"
#include "packed_triangle.h"
#include "pooling_checks.h"
#include "result_memory.h"

namespace pyext {

KernelStub<void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                const BilinearPoolOptions&)>
    bilinear_pool_stub("bilinear_pool");
KernelStub<void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                const at::Tensor&, const at::Tensor&, const at::Tensor&,
                const BilinearPoolOptions&)>
    bilinear_pool_backward_stub("bilinear_pool_backward");

namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

BilinearPoolOptions checked(const at::Tensor& x, const OptionalTensor& y,
                            std::optional<double> scale, double eps, bool signed_sqrt, bool l2,
                            bool packed, bool center) {
  check_features("bilinear_pool", x, y);
  TORCH_CHECK_VALUE(!packed || !y,
                    "bilinear_pool: expected packed=False with two inputs: only the products of x "
                    "with itself are symmetric");
  TORCH_CHECK_VALUE(eps >= 0, "bilinear_pool: expected eps >= 0, got ", eps);
  const double each = 1.0 / static_cast<double>(x.size(2));
  return {scale.value_or(each), eps, signed_sqrt, l2, packed, center};
}

Pair bilinear_pool_entry(const at::Tensor& x, const OptionalTensor& y, std::optional<double> scale,
                         double eps, bool signed_sqrt, bool l2, bool packed, bool center) {
  const auto options = checked(x, y, scale, eps, signed_sqrt, l2, packed, center);
  const at::OptionalDeviceGuard guard(at::device_of(x));
  const int64_t batch = x.size(0), rows = x.size(1), cols = y ? y->size(1) : rows;
  auto out = packed ? empty_result({batch, packed_size(rows)}, x.options())
                    : empty_result({batch, rows, cols}, x.options());
  auto norm = at::empty({batch}, x.options().dtype(arithmetic_of(x)));
  if (batch == 0) return {out, norm};
  bilinear_pool_stub(x.device().type(), out, norm, x, y.value_or(at::Tensor()), options);
  return {out, norm};
}

Pair bilinear_pool_backward_entry(const at::Tensor& grad, const at::Tensor& x,
                                  const OptionalTensor& y, const at::Tensor& result,
                                  const at::Tensor& norm, std::optional<double> scale, double eps,
                                  bool signed_sqrt, bool l2, bool packed, bool center) {
  const auto options = checked(x, y, scale, eps, signed_sqrt, l2, packed, center);
  TORCH_CHECK_VALUE(grad.sizes() == result.sizes(),
                    "bilinear_pool_backward: expected grad of shape ", result.sizes(), ", got ",
                    grad.sizes());
  const at::OptionalDeviceGuard guard(at::device_of(x));
  auto grad_x = fresh_gradient(x);
  auto grad_y = y ? fresh_gradient(*y) : at::empty({0}, x.options());
  if (x.size(0) == 0) return {grad_x, grad_y};
  bilinear_pool_backward_stub(x.device().type(), grad_x, y ? grad_y : at::Tensor(), grad, x,
                              y.value_or(at::Tensor()), result, norm, options);
  return {grad_x, grad_y};
}

void register_bilinear_pool(torch::Library& m) {
  m.impl("bilinear_pool", bilinear_pool_entry);
  m.impl("bilinear_pool_backward", bilinear_pool_backward_entry);
}

TORCH_LIBRARY_IMPL(pyext, CPU, m) { register_bilinear_pool(m); }
TORCH_LIBRARY_IMPL(pyext, CUDA, m) { register_bilinear_pool(m); }

}  // namespace

Pair bilinear_pool(const at::Tensor& x, const OptionalTensor& y, std::optional<double> scale,
                   double eps, bool signed_sqrt, bool l2, bool packed, bool center) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyext::bilinear_pool", "")
                             .typed<decltype(bilinear_pool)>();
  return op.call(x, y, scale, eps, signed_sqrt, l2, packed, center);
}

Pair bilinear_pool_backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& y,
                            const at::Tensor& result, const at::Tensor& norm,
                            std::optional<double> scale, double eps, bool signed_sqrt, bool l2,
                            bool packed, bool center) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyext::bilinear_pool_backward", "")
                             .typed<decltype(bilinear_pool_backward)>();
  return op.call(grad, x, y, result, norm, scale, eps, signed_sqrt, l2, packed, center);
}

}  // namespace pyext
