// Matrix products of an einsum by torch's own, which is BLAS.
#pragma once

#include <ATen/core/Tensor.h>

#include "einsum_lowering.h"

namespace pyext {

void run_matmul(const MatmulViews& views, const at::Tensor& a, const at::Tensor& b,
                const at::Tensor& result);

}  // namespace pyext
