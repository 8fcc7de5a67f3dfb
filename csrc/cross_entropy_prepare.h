// From the arguments of cross_entropy to what the kernels read.
#pragma once

#include "cross_entropy_problem.h"

namespace pyext {

// A problem and the tensors that its pointers point into.
struct PreparedCrossEntropy {
  CrossEntropyProblem problem;
  at::Tensor input, target, target_b, probabilities, weight, prior, class_mass, class_mass_sum,
      row_smoothing, row_lam, scales;
};

// Checks the arguments. The problem lacks its layout.
PreparedCrossEntropy prepare_cross_entropy(const at::Tensor& input, const at::Tensor& target,
                                           const CrossEntropyOptions& options);

// Says where rows lie in input, probabilities and gradient, which may be undefined.
void lay_out(PreparedCrossEntropy& prepared, const at::Tensor& gradient);

inline const void* data_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

}  // namespace pyext
