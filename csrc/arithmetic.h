// What values are computed in.
#pragma once

#include <ATen/core/Tensor.h>

namespace pyext {

// Half types in float.
inline at::ScalarType arithmetic_of(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace pyext
