// Whether tensors share memory, also where strides alone do not tell.
#pragma once

#include <ATen/core/Tensor.h>

namespace pyext {

// Whether elements of a tensor share memory.
bool overlaps_itself(const at::Tensor& x);

// Whether two tensors share memory.
bool overlaps(const at::Tensor& x, const at::Tensor& y);

}  // namespace pyext
