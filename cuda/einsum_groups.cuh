// The indices of a contraction as those of matrix products: batch x M x K times batch x K x N. And
// which tensors already are such matrices, laid out as cuBLAS takes them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>

#include "contraction.h"

namespace pyext {
namespace {

enum Operand { kA, kB, kOut };

inline int64_t stride_of(const ProductDim& dim, Operand x) {
  return x == kOut ? dim.out : dim.in[x];
}

// Indices that take part in the same tensors, the slowest first.
struct Group {
  c10::SmallVector<ProductDim, 4> dims;

  int64_t size() const {
    int64_t product = 1;
    for (const auto& dim : dims) product *= dim.size;
    return product;
  }

  // The stride of all of them as one index, if they lie so.
  std::optional<int64_t> stride(Operand x) const {
    if (dims.empty()) return 1;
    for (size_t d = 0; d + 1 < dims.size(); ++d) {
      if (stride_of(dims[d], x) != stride_of(dims[d + 1], x) * dims[d + 1].size) {
        return std::nullopt;
      }
    }
    return stride_of(dims.back(), x);
  }

  int64_t least_stride(Operand x) const {
    int64_t least = std::numeric_limits<int64_t>::max();
    for (const auto& dim : dims) {
      if (stride_of(dim, x) != 0) least = std::min(least, stride_of(dim, x));
    }
    return least;
  }

  void sort_by(Operand x) {
    std::stable_sort(dims.begin(), dims.end(), [&](const ProductDim& a, const ProductDim& b) {
      return stride_of(a, x) > stride_of(b, x);
    });
  }
};

struct Strides {
  int64_t batch, row, col;
};

struct Groups {
  Group batch, m, n, k;

  explicit Groups(const SumOfProducts& problem) {
    for (const auto& dim : problem.dims) {
      if (dim.size == 1) continue;
      const bool in_a = dim.in[kA] != 0, in_b = dim.in[kB] != 0;
      Group& group = dim.out == 0 ? k : !in_b ? m : !in_a ? n : batch;
      group.dims.push_back(dim);
    }
  }

  const Group& rows(Operand x) const { return x == kB ? k : m; }
  const Group& cols(Operand x) const { return x == kA ? k : n; }

  int64_t size(Operand x) const { return batch.size() * rows(x).size() * cols(x).size(); }

  // The tensor as matrices of which rows or columns are contiguous, if it lies so.
  std::optional<Strides> matrices(Operand x) const {
    const auto in_batch = batch.stride(x), in_rows = rows(x).stride(x), in_cols = cols(x).stride(x);
    if (!in_batch || !in_rows || !in_cols) return std::nullopt;
    Strides s = {*in_batch, *in_rows, *in_cols};
    const int64_t height = rows(x).size(), width = cols(x).size();
    // The stride of an index of one value is free, but must not be too small.
    if (height == 1) s.row = width == 1 || s.col == 1 ? width : 1;
    if (width == 1) s.col = s.row == 1 ? height : 1;
    const bool by_rows = s.col == 1 && s.row >= width, by_cols = s.row == 1 && s.col >= height;
    const bool fits = std::max(s.row, s.col) <= std::numeric_limits<int32_t>::max();
    if (!(by_rows || by_cols) || !fits) return std::nullopt;
    if (batch.dims.empty()) s.batch = std::max(s.row * height, s.col * width);
    return s;
  }

  // Those of a contiguous buffer, along whose rows or columns the tensor is contiguous too.
  Strides packed(Operand x) const {
    const int64_t height = rows(x).size(), width = cols(x).size();
    const bool by_cols = rows(x).least_stride(x) < cols(x).least_stride(x);
    if (by_cols) return {height * width, 1, height};
    return {height * width, width, 1};
  }

  // The problem of copying a tensor to or from such a buffer; its strides are in `out`.
  SumOfProducts copy(Operand x, const Strides& buffer) const {
    SumOfProducts problem;
    const auto add = [&](const Group& group, int64_t stride) {
      for (size_t d = group.dims.size(); d-- > 0; stride *= group.dims[d].size) {
        problem.dims.push_back({group.dims[d].size, stride, {stride_of(group.dims[d], x)}});
      }
    };
    add(batch, buffer.batch);
    add(rows(x), buffer.row);
    add(cols(x), buffer.col);
    return problem;
  }

  // Puts the indices of each group in the order for which `cost` is least.
  template <typename Cost>
  void choose_order(const Cost& cost) {
    const std::array<const Group*, 4> all = {&batch, &m, &n, &k};
    if (std::all_of(all.begin(), all.end(), [](const Group* g) { return g->dims.size() < 2; })) {
      return;
    }
    double least = std::numeric_limits<double>::infinity();
    Groups best = *this;
    for (const Operand by_m : {kA, kOut}) {
      for (const Operand by_n : {kB, kOut}) {
        for (const Operand by_k : {kA, kB}) {
          for (const Operand by_batch : {kA, kB, kOut}) {
            Groups next = *this;
            next.m.sort_by(by_m);
            next.n.sort_by(by_n);
            next.k.sort_by(by_k);
            next.batch.sort_by(by_batch);
            if (const double c = cost(next); c < least) least = c, best = next;
          }
        }
      }
    }
    *this = best;
  }
};

}  // namespace
}  // namespace pyext
