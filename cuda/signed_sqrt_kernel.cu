// signed_sqrt on CUDA: the formula of signed_sqrt.h under TensorIterator.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/TensorIterator.h>

#include <ATen/native/cuda/Loops.cuh>

#include "signed_sqrt.h"

namespace pyext {
namespace {

void signed_sqrt_kernel(at::TensorIteratorBase& iter, double eps) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, iter.common_dtype(), "signed_sqrt", [&] {
        using math_t = at::opmath_type<scalar_t>;
        const auto eps_ = static_cast<math_t>(eps);
        at::native::gpu_kernel(iter, [eps_] GPU_LAMBDA(scalar_t x) -> scalar_t {
          return signed_sqrt_value(static_cast<math_t>(x), eps_);
        });
      });
}

void signed_sqrt_backward_kernel(at::TensorIteratorBase& iter) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, iter.common_dtype(), "signed_sqrt_backward", [&] {
        using math_t = at::opmath_type<scalar_t>;
        at::native::gpu_kernel(iter, [] GPU_LAMBDA(scalar_t grad, scalar_t y) -> scalar_t {
          return signed_sqrt_gradient(static_cast<math_t>(grad), static_cast<math_t>(y));
        });
      });
}

const RegisterKernel forward(signed_sqrt_stub, at::kCUDA, &signed_sqrt_kernel);
const RegisterKernel backward(signed_sqrt_backward_stub, at::kCUDA, &signed_sqrt_backward_kernel);

}  // namespace
}  // namespace pyext
