// What the pooling ops ask of the features they are given.
#pragma once

#include <ATen/core/Tensor.h>

namespace pyext {

// (N, D, S), D and S at least 1, of a floating-point dtype.
void check_features(const char* op, const char* argument, const at::Tensor& x);
// y (N, D2, S) that goes with x.
void check_second_features(const char* op, const at::Tensor& y, const at::Tensor& x);

}  // namespace pyext
