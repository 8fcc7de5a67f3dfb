// The problem that every step of an einsum is, brought into its simplest form.
#include "contraction.h"

#include <algorithm>

namespace pyext {

KernelStub<void(const SumOfProducts&)> multiply_reduce_stub("einsum");
KernelStub<void(const SumOfProducts&)> contract_stub("einsum");

namespace {

bool continues(const ProductDim& outer, const ProductDim& inner) {
  if (outer.out != inner.size * inner.out || (inner.out == 0) != (outer.out == 0)) return false;
  for (int i = 0; i < kMaxFactors; ++i) {
    if (outer.in[i] != inner.size * inner.in[i]) return false;
    if ((inner.in[i] == 0) != (outer.in[i] == 0)) return false;
  }
  return true;
}

}  // namespace

void merge_dims(c10::SmallVectorImpl<ProductDim>& dims) {
  const auto has_one = [](const ProductDim& dim) { return dim.size == 1; };
  dims.erase(std::remove_if(dims.begin(), dims.end(), has_one), dims.end());
  for (size_t i = 0; i < dims.size(); ++i) {
    for (size_t j = 0; j < dims.size(); ++j) {
      if (i == j || !continues(dims[i], dims[j])) continue;
      dims[j].size *= dims[i].size;
      dims.erase(dims.begin() + i);
      i = static_cast<size_t>(-1);  // from the start: the longer index may continue another
      break;
    }
  }
}

}  // namespace pyext
