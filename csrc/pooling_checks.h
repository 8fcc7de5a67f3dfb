// What the pooling ops ask of the features they are given, and the memory of the gradients.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace pyext {

// x (N, D, S), D and S at least 1, of a floating-point dtype, and y (N, D2, S) that goes with it.
void check_features(const char* op, const at::Tensor& x,
                    const std::optional<at::Tensor>& y = std::nullopt);

// Uninitialised and contiguous, of the shape and dtype of x.
at::Tensor fresh_gradient(const at::Tensor& x);

}  // namespace pyext
