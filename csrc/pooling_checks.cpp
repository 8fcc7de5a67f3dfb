// What the pooling ops ask of the features they are given, and the memory of the gradients.
#include "pooling_checks.h"

#include "result_memory.h"

namespace pyext {
namespace {

void check_one(const char* op, const char* argument, const at::Tensor& x) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      op, ": expected ", argument, " of dtype float32, float64, bfloat16 or float16, got ", dtype);
  TORCH_CHECK_VALUE(x.dim() == 3, op, ": expected ", argument, " of shape (N, D, positions), got ",
                    x.sizes());
  TORCH_CHECK_VALUE(x.size(1) > 0, op, ": expected ", argument,
                    " with at least one channel, got shape ", x.sizes());
  TORCH_CHECK_VALUE(x.size(2) > 0, op, ": expected ", argument,
                    " with at least one position, got shape ", x.sizes());
}

void check_second(const char* op, const at::Tensor& y, const at::Tensor& x) {
  TORCH_CHECK_TYPE(y.scalar_type() == x.scalar_type(), op, ": expected y of the dtype of x, ",
                   x.scalar_type(), ", got ", y.scalar_type());
  check_one(op, "y", y);
  TORCH_CHECK_VALUE(y.size(0) == x.size(0) && y.size(2) == x.size(2), op,
                    ": expected y of shape (N, D2, positions) with N = ", x.size(0),
                    " and positions = ", x.size(2), " as x, got ", y.sizes());
  TORCH_CHECK_VALUE(y.device() == x.device(), op, ": expected y on the device of x, ", x.device(),
                    ", got ", y.device());
}

}  // namespace

void check_features(const char* op, const at::Tensor& x, const std::optional<at::Tensor>& y) {
  check_one(op, "x", x);
  if (y) check_second(op, *y, x);
}

at::Tensor fresh_gradient(const at::Tensor& x) { return empty_result(x.sizes(), x.options()); }

}  // namespace pyext
