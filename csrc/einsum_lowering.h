// Which kernel a contraction of two factors may take beside the tiles.
#pragma once

#include "contraction.h"

namespace pyext {

// What a plan must know of a tensor.
struct TensorLayout {
  c10::SmallVector<int64_t, 6> sizes, strides;
  at::ScalarType dtype;
};

inline TensorLayout layout_of(const at::Tensor& x) {
  return {{x.sizes().begin(), x.sizes().end()},
          {x.strides().begin(), x.strides().end()},
          x.scalar_type()};
}

// A matrix product for BLAS: how to see one factor as batch x M x K, the other as batch x K x N.
struct MatmulViews {
  TensorLayout a, b, out;
  int64_t batch = 1, m = 1, n = 1, k = 1;
  // Whether M, N and K are one index each, which BLAS walks in all three tensors without a copy.
  bool as_they_lie = false;
  bool is_dense = false;  // whether the products along the last index of the batch fill memory

  double flops_of_one() const {
    return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  }
};

// Whether the product of a tensor with itself is symmetric, and large enough to gain by it: M and N
// lie alike in the tensor, and everything else does too.
bool is_symmetric(const SumOfProducts& problem);

// Whether torch's own matrix product is faster than tiles: where BLAS takes the factors as they
// lie, and for 16-bit types, whose sums it forms in float32 too.
bool matmul_is_faster(const SumOfProducts& problem);
MatmulViews matmul_views(const SumOfProducts& problem);

}  // namespace pyext
