// signed_sqrt on the CPU: the formula of signed_sqrt.h under TensorIterator.
#include <ATen/Dispatch.h>

#include "cpu/pointwise.h"
#include "signed_sqrt.h"

namespace pyext {
namespace {

void signed_sqrt_kernel(at::TensorIteratorBase& iter, double eps) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, iter.common_dtype(), "signed_sqrt", [&] {
        pointwise_unary<scalar_t>(iter,
                                  [eps](auto x) { return signed_sqrt_value(x, decltype(x)(eps)); });
      });
}

void signed_sqrt_backward_kernel(at::TensorIteratorBase& iter) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, iter.common_dtype(), "signed_sqrt_backward", [&] {
        pointwise_binary<scalar_t>(iter,
                                   [](auto grad, auto y) { return signed_sqrt_gradient(grad, y); });
      });
}

const RegisterKernel forward(signed_sqrt_stub, at::kCPU, &signed_sqrt_kernel);
const RegisterKernel backward(signed_sqrt_backward_stub, at::kCPU, &signed_sqrt_backward_kernel);

}  // namespace
}  // namespace pyext
