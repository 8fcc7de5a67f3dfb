// compact_bilinear_pool: checks, outputs and device entries. The kernels are in csrc/cpu and cuda.
#include "compact_bilinear_pool.h"

#include <ATen/DeviceGuard.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "arithmetic.h"
#include "pooling_checks.h"

namespace pyext {

KernelStub<void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const Sketches&)>
    compact_bilinear_pool_stub("compact_bilinear_pool");
KernelStub<void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                const at::Tensor&, const Sketches&)>
    compact_bilinear_pool_backward_stub("compact_bilinear_pool_backward");

namespace {

using OptionalTensor = std::optional<at::Tensor>;

void check_sketch(const char* number, const at::Tensor& hash, const at::Tensor& sign,
                  const at::Tensor& x, int64_t channels, int64_t output_dim) {
  TORCH_CHECK_TYPE(hash.scalar_type() == at::kLong, "compact_bilinear_pool: expected hash", number,
                   " of dtype int64, got ", hash.scalar_type());
  TORCH_CHECK_TYPE(at::isFloatingType(sign.scalar_type()), "compact_bilinear_pool: expected sign",
                   number, " of a floating-point dtype, got ", sign.scalar_type());
  for (const auto& [name, tensor] : {std::pair{"hash", hash}, std::pair{"sign", sign}}) {
    TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.size(0) == channels,
                      "compact_bilinear_pool: expected ", name, number,
                      " with one value per channel, shape [", channels, "], got ", tensor.sizes());
    TORCH_CHECK_VALUE(tensor.device() == x.device(), "compact_bilinear_pool: expected ", name,
                      number, " on the device of x, ", x.device(), ", got ", tensor.device());
  }
  if (!hash.device().is_cpu()) return;  // reading the values would wait for the device
  TORCH_CHECK_VALUE(hash.ge(0).logical_and(hash.lt(output_dim)).all().item<bool>(),
                    "compact_bilinear_pool: expected every hash", number,
                    " in [0, output_dim = ", output_dim, "), got values from ",
                    hash.min().item<int64_t>(), " to ", hash.max().item<int64_t>());
}

// The sketches as the kernels take them.
Sketches checked(const at::Tensor& x, const OptionalTensor& y, const Sketches& sketches,
                 int64_t output_dim) {
  TORCH_CHECK_VALUE(output_dim >= 1, "compact_bilinear_pool: expected output_dim >= 1, got ",
                    output_dim);
  check_features("compact_bilinear_pool", x, y);
  check_sketch("1", sketches.hash1, sketches.sign1, x, x.size(1), output_dim);
  check_sketch("2", sketches.hash2, sketches.sign2, x, y ? y->size(1) : x.size(1), output_dim);
  const auto dtype = arithmetic_of(x);
  return {sketches.hash1.contiguous(), sketches.sign1.to(dtype).contiguous(),
          sketches.hash2.contiguous(), sketches.sign2.to(dtype).contiguous()};
}

at::Tensor compact_bilinear_pool_entry(const at::Tensor& x, const OptionalTensor& y,
                                       const at::Tensor& hash1, const at::Tensor& sign1,
                                       const at::Tensor& hash2, const at::Tensor& sign2,
                                       int64_t output_dim) {
  const auto sketches = checked(x, y, {hash1, sign1, hash2, sign2}, output_dim);
  const at::OptionalDeviceGuard guard(at::device_of(x));
  auto out = at::empty({x.size(0), output_dim}, x.options());
  if (out.numel() == 0) return out;
  compact_bilinear_pool_stub(x.device().type(), out, x, y.value_or(at::Tensor()), sketches);
  return out;
}

std::tuple<at::Tensor, at::Tensor> compact_bilinear_pool_backward_entry(
    const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& y, const at::Tensor& hash1,
    const at::Tensor& sign1, const at::Tensor& hash2, const at::Tensor& sign2) {
  TORCH_CHECK_VALUE(grad.dim() == 2 && x.dim() == 3 && grad.size(0) == x.size(0),
                    "compact_bilinear_pool_backward: expected grad of shape (N, output_dim), got ",
                    grad.sizes());
  const auto sketches = checked(x, y, {hash1, sign1, hash2, sign2}, grad.size(1));
  const at::OptionalDeviceGuard guard(at::device_of(x));
  auto grad_x = fresh_gradient(x);
  auto grad_y = y ? fresh_gradient(*y) : at::empty({0}, x.options());
  if (x.size(0) == 0) return {grad_x, grad_y};
  compact_bilinear_pool_backward_stub(x.device().type(), grad_x, y ? grad_y : at::Tensor(), grad, x,
                                      y.value_or(at::Tensor()), sketches);
  return {grad_x, grad_y};
}

void register_compact_bilinear_pool(torch::Library& m) {
  m.impl("compact_bilinear_pool", compact_bilinear_pool_entry);
  m.impl("compact_bilinear_pool_backward", compact_bilinear_pool_backward_entry);
}

TORCH_LIBRARY_IMPL(pyext, CPU, m) { register_compact_bilinear_pool(m); }
TORCH_LIBRARY_IMPL(pyext, CUDA, m) { register_compact_bilinear_pool(m); }

}  // namespace

at::Tensor compact_bilinear_pool(const at::Tensor& x, const OptionalTensor& y,
                                 const Sketches& sketches, int64_t output_dim) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyext::compact_bilinear_pool", "")
                             .typed<decltype(compact_bilinear_pool_entry)>();
  return op.call(x, y, sketches.hash1, sketches.sign1, sketches.hash2, sketches.sign2, output_dim);
}

std::tuple<at::Tensor, at::Tensor> compact_bilinear_pool_backward(const at::Tensor& grad,
                                                                  const at::Tensor& x,
                                                                  const OptionalTensor& y,
                                                                  const Sketches& sketches) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyext::compact_bilinear_pool_backward", "")
                             .typed<decltype(compact_bilinear_pool_backward_entry)>();
  return op.call(grad, x, y, sketches.hash1, sketches.sign1, sketches.hash2, sketches.sign2);
}

}  // namespace pyext
