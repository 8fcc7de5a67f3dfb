// Which kernel a contraction of two factors may take beside the tiles.
#include "einsum_lowering.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

namespace pyext {
namespace {

constexpr int64_t kLargestInt = std::numeric_limits<int32_t>::max();  // of BLAS

using Dims = c10::SmallVector<ProductDim, 4>;

struct Groups {
  Dims batch, m, n, k;
};

Groups groups_of(const SumOfProducts& problem) {
  Groups groups;
  for (const auto& dim : problem.dims) {
    const bool in_a = dim.in[0] != 0, in_b = dim.in[1] != 0;
    (dim.out == 0   ? groups.k
     : in_a == in_b ? groups.batch
     : in_a         ? groups.m
                    : groups.n)
        .push_back(dim);
  }
  return groups;
}

int64_t size_of(const Dims& dims) {
  int64_t product = 1;
  for (const auto& dim : dims) product *= dim.size;
  return product;
}

template <typename Stride>
void add(TensorLayout& view, const Dims& dims, Stride stride) {
  for (const auto& dim : dims) {
    view.sizes.push_back(dim.size);
    view.strides.push_back(stride(dim));
  }
}

// Whether these are the rows and columns of a matrix for BLAS: one of them is contiguous.
template <typename Stride>
bool is_matrix(const Dims& rows, const Dims& cols, Stride stride) {
  if (rows.size() != 1 || cols.size() != 1) return false;
  const auto lies = [&](const ProductDim& outer, const ProductDim& inner) {
    return stride(inner) == 1 && stride(outer) >= inner.size && outer.size <= kLargestInt &&
           stride(outer) <= kLargestInt;
  };
  return lies(rows[0], cols[0]) || lies(cols[0], rows[0]);
}

}  // namespace

bool is_symmetric(const SumOfProducts& problem) {
  constexpr int64_t kRows = 128;  // where skipped tiles are worth their bookkeeping
  if (c10::isComplexType(problem.dtype)) return false;
  const Groups groups = groups_of(problem);
  for (const auto* shared : {&groups.batch, &groups.k}) {
    for (const auto& dim : *shared) {
      if (dim.in[0] != dim.in[1]) return false;
    }
  }
  std::set<std::pair<int64_t, int64_t>> m, n;
  for (const auto& dim : groups.m) m.insert({dim.in[0], dim.size});
  for (const auto& dim : groups.n) n.insert({dim.in[1], dim.size});
  return m == n && m.size() == groups.m.size() && n.size() == groups.n.size() &&
         size_of(groups.m) >= kRows;
}

bool matmul_is_faster(const SumOfProducts& problem) {
  constexpr int64_t kLeast16Bit = 32;
  constexpr double kLeastFlops = 1 << 22, kLeastFlopsOfMany = 1 << 19;  // of a call of torch
  const at::ScalarType dtype = problem.out.dtype;
  if (problem.symmetric || problem.in[0].dtype != dtype || problem.in[1].dtype != dtype) {
    return false;
  }
  const MatmulViews views = matmul_views(problem);
  if (c10::isReducedFloatingType(dtype)) {
    return problem.dtype == at::kFloat && std::min({views.m, views.n, views.k}) >= kLeast16Bit;
  }
  // Long sums of few results: tiles keep more of their digits.
  constexpr int64_t kLong = 1024, kFew = 512;
  const bool long_sums = views.k >= kLong && std::min(views.m, views.n) < kFew;
  if (problem.dtype != dtype || c10::isIntegralType(dtype, true) || !views.as_they_lie ||
      long_sums) {
    return false;
  }
  const double flops = views.flops_of_one();
  return flops >= kLeastFlops ||
         (views.is_dense &&
          flops * static_cast<double>(views.out.sizes.end()[-3]) >= kLeastFlopsOfMany);
}

MatmulViews matmul_views(const SumOfProducts& problem) {
  Groups groups = groups_of(problem);
  for (auto* dims : {&groups.batch, &groups.m, &groups.n}) {
    std::stable_sort(dims->begin(), dims->end(),
                     [](const ProductDim& x, const ProductDim& y) { return x.out > y.out; });
  }
  const auto a = [](const ProductDim& dim) { return dim.in[0]; };
  const auto b = [](const ProductDim& dim) { return dim.in[1]; };
  const auto out = [](const ProductDim& dim) { return dim.out; };
  MatmulViews views;
  for (const auto* dims : {&groups.batch, &groups.m, &groups.k}) add(views.a, *dims, a);
  for (const auto* dims : {&groups.batch, &groups.k, &groups.n}) add(views.b, *dims, b);
  for (const auto* dims : {&groups.batch, &groups.m, &groups.n}) add(views.out, *dims, out);
  views.batch = size_of(groups.batch);
  views.m = size_of(groups.m);
  views.n = size_of(groups.n);
  views.k = size_of(groups.k);
  views.as_they_lie = is_matrix(groups.m, groups.k, a) && is_matrix(groups.k, groups.n, b) &&
                      is_matrix(groups.m, groups.n, out);
  views.is_dense = views.as_they_lie && !groups.batch.empty() && groups.n[0].out == 1 &&
                   groups.m[0].out == views.n && groups.batch.back().out == views.m * views.n;
  return views;
}

}  // namespace pyext
