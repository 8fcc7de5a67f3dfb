// Plans are made once for operands that lie alike, and kept.
#pragma once

#include <memory>
#include <string>

#include "einsum.h"

namespace pyext {

// The plan for these operands, whose result has `dtype` and is summed in `arithmetic`; `out` may be
// undefined. From any thread.
std::shared_ptr<const Plan> find_plan(const std::string& equation, at::TensorList operands,
                                      at::ScalarType dtype, at::ScalarType arithmetic,
                                      const EinsumOptions& options, const at::Tensor& out);

}  // namespace pyext
