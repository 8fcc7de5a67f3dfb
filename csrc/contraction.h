// A sum of products over strided tensors: the one problem that every step of an einsum is, and what
// the kernels of csrc/cpu and cuda solve.
//
//   out[o] = alpha * (sum over r of in[0][o, r] * in[1][o, r] * ...) + beta * out[o]
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Scalar.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <cstdint>

#include "kernel_stub.h"

namespace pyext {

constexpr int kMaxFactors = 3;
constexpr size_t kMaxIndices = 14;  // that the CPU kernels take

// An index of the sum: how far apart, in elements, its values lie in each tensor.
struct ProductDim {
  int64_t size;
  int64_t out = 0;                           // 0: summed over
  std::array<int64_t, kMaxFactors> in = {};  // 0: the factor does not depend on this index
};

// Where a tensor lies. Factors may differ in dtype; the sum is formed in the arithmetic type of
// `dtype` of the problem (float for 16-bit types, int32 for smaller integers) and rounded once.
struct ProductTensor {
  void* data;
  at::ScalarType dtype;
};

// A tensor that is not written to.
inline ProductTensor read_from(const at::Tensor& x) {
  return {const_cast<void*>(x.const_data_ptr()), x.scalar_type()};
}

struct SumOfProducts {
  c10::SmallVector<ProductDim, 8> dims;
  c10::SmallVector<ProductTensor, kMaxFactors> in;
  ProductTensor out;
  at::ScalarType dtype;  // of the arithmetic: float, double, int32, int64, complex, bool
  c10::Scalar alpha = 1;
  c10::Scalar beta = 0;    // 0: out is not read
  bool symmetric = false;  // contraction of a tensor with itself whose result is symmetric
  // Of three factors: whether the matrix product is that of the first two, and the third weighs its
  // rows, which are then added up. Else the product of the last two is formed.
  bool weighs_rows = false;

  int factors() const { return static_cast<int>(in.size()); }
};

// Drops indices of one value, and makes one index of two that lie alike in every tensor.
void merge_dims(c10::SmallVectorImpl<ProductDim>& dims);

// One pass over memory, for what has no matrix product in it: up to kMaxFactors factors.
extern KernelStub<void(const SumOfProducts&)> multiply_reduce_stub;
// A matrix product by tiles that are packed into cache, multiplied there and scattered: of two
// factors, or of the first of three real ones and the product of the others, which is formed while
// it is packed, or weighs finished tiles.
extern KernelStub<void(const SumOfProducts&)> contract_stub;

}  // namespace pyext
