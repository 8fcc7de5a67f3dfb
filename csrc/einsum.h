// einsum: sums of products of tensors, as an equation says them.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Scalar.h>

#include <memory>
#include <optional>
#include <string>

#include "einsum_plan.h"

namespace pyext {

// What may be asked of an einsum beside its equation.
struct EinsumOptions {
  c10::Scalar alpha = 1;
  std::string layout = "contiguous";  // or "any"
  std::optional<at::ScalarType> accumulate_dtype;
  at::OptionalIntArrayRef path;  // pairs of positions, flattened
};

// The ops, through the dispatcher, for C++ callers.
at::Tensor einsum(const std::string& equation, at::TensorList operands,
                  const EinsumOptions& options = {});
at::Tensor& einsum_out(const std::string& equation, at::TensorList operands,
                       const c10::Scalar& beta, const EinsumOptions& options, at::Tensor& out);

// The plan for these operands, from the cache if it was made before.
std::shared_ptr<const Plan> einsum_plan(const std::string& equation, at::TensorList operands,
                                        const EinsumOptions& options = {},
                                        const std::optional<at::Tensor>& out = std::nullopt);

}  // namespace pyext
