// signed_sqrt: checks and device entries. The kernels are in csrc/cpu and cuda.
#include "signed_sqrt.h"

#include <ATen/DeviceGuard.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "result_memory.h"

namespace pyext {

KernelStub<void(at::TensorIteratorBase&, double)> signed_sqrt_stub("signed_sqrt");
KernelStub<void(at::TensorIteratorBase&)> signed_sqrt_backward_stub("signed_sqrt_backward");

namespace {

// Integers become floating point, `out` is resized and an `out` of too narrow a dtype is refused:
// TensorIterator promises of us what it promises of torch.sqrt.
void compute(at::Tensor& out, const at::Tensor& self, double eps) {
  TORCH_CHECK_VALUE(eps >= 0, "signed_sqrt: expected eps >= 0, got ", eps);
  const at::OptionalDeviceGuard guard(at::device_of(self));
  if (!out.defined() && self.is_contiguous()) {
    const bool is_integral = c10::isIntegralType(self.scalar_type(), /*includeBool=*/true);
    const auto dtype = is_integral ? c10::get_default_dtype() : self.dtype();
    out = empty_result(self.sizes(), self.options().dtype(dtype));
  }
  auto iter = at::TensorIterator::unary_float_op(out, self);
  signed_sqrt_stub(iter.device_type(), iter, eps);
  out = iter.output();
}

at::Tensor signed_sqrt_entry(const at::Tensor& self, double eps) {
  at::Tensor out;
  compute(out, self, eps);
  return out;
}

at::Tensor& signed_sqrt_in_place_entry(at::Tensor& self, double eps) {
  compute(self, self, eps);
  return self;
}

at::Tensor& signed_sqrt_out_entry(const at::Tensor& self, double eps, at::Tensor& out) {
  compute(out, self, eps);
  return out;
}

at::Tensor signed_sqrt_backward_entry(const at::Tensor& grad, const at::Tensor& result) {
  const at::OptionalDeviceGuard guard(at::device_of(result));
  at::Tensor out;
  if (grad.is_contiguous() && result.is_contiguous() && grad.sizes() == result.sizes()) {
    out = empty_result(result.sizes(), result.options());
  }
  auto iter = at::TensorIterator::binary_op(out, grad, result);
  signed_sqrt_backward_stub(iter.device_type(), iter);
  return iter.output();
}

void register_signed_sqrt(torch::Library& m) {
  m.impl("signed_sqrt", signed_sqrt_entry);
  m.impl("signed_sqrt_", signed_sqrt_in_place_entry);
  m.impl("signed_sqrt.out", signed_sqrt_out_entry);
  m.impl("signed_sqrt_backward", signed_sqrt_backward_entry);
}

TORCH_LIBRARY_IMPL(pyext, CPU, m) { register_signed_sqrt(m); }
TORCH_LIBRARY_IMPL(pyext, CUDA, m) { register_signed_sqrt(m); }

}  // namespace

at::Tensor signed_sqrt(const at::Tensor& self, double eps) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyext::signed_sqrt", "")
                             .typed<at::Tensor(const at::Tensor&, double)>();
  return op.call(self, eps);
}

at::Tensor& signed_sqrt_(at::Tensor& self, double eps) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyext::signed_sqrt_", "")
                             .typed<at::Tensor&(at::Tensor&, double)>();
  return op.call(self, eps);
}

at::Tensor& signed_sqrt_out(const at::Tensor& self, double eps, at::Tensor& out) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyext::signed_sqrt", "out")
                             .typed<at::Tensor&(const at::Tensor&, double, at::Tensor&)>();
  return op.call(self, eps, out);
}

at::Tensor signed_sqrt_backward(const at::Tensor& grad, const at::Tensor& result) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyext::signed_sqrt_backward", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&)>();
  return op.call(grad, result);
}

}  // namespace pyext
