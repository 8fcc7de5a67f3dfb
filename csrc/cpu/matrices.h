// A sum of products seen as matrices: which indices are rows, columns, summed over or shared.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>

#include "contraction.h"
#include "cpu/bricks.h"

namespace pyext {
namespace {

// The factors as matrices: M x K times K x N, for every value of the batch indices.
struct Matrices {
  IndexGroup m, n, k;                     // strides: (a, out), (b, out), (a, b)
  c10::SmallVector<ProductDim, 4> batch;  // in[0]: a, in[1]: b
  ProductTensor a, b, out;
  // Instead of b: two factors whose product it is. The strides in b are then 0.
  std::optional<std::array<ProductTensor, 2>> pair;
  int64_t batches = 1;

  // Whether a matrix of a factor is so close together, and so few rows or columns of the other need
  // it, that it is not worth a copy.
  template <typename acc_t>
  bool uses_a_as_it_lies() const {
    return n.size() <= kSeldom && is_near<acc_t>(m.span(&GroupDim::x) + k.span(&GroupDim::x));
  }
  template <typename acc_t>
  bool uses_b_as_it_lies() const {
    return m.size() <= kSeldom && is_near<acc_t>(k.span(&GroupDim::y) + n.span(&GroupDim::x));
  }

  static constexpr int64_t kSeldom = 96, kNearBytes = 256 << 10;
  template <typename acc_t>
  static bool is_near(int64_t span) {
    return span * static_cast<int64_t>(sizeof(acc_t)) < kNearBytes;
  }

  // Where the matrices of a batch begin.
  std::array<int64_t, 3> offsets(int64_t number) const {
    std::array<int64_t, 3> result{};
    for (int i = static_cast<int>(batch.size()) - 1; i >= 0; --i) {
      const int64_t value = number % batch[i].size;
      number /= batch[i].size;
      result[0] += value * batch[i].in[0];
      result[1] += value * batch[i].in[1];
      result[2] += value * batch[i].out;
    }
    return result;
  }
};

inline Matrices matrices_of(const SumOfProducts& problem, bool swapped) {
  const int left = swapped ? 1 : 0, right = swapped ? 0 : 1;
  Matrices result;
  result.a = problem.in[left];
  result.b = problem.in[right];
  result.out = problem.out;
  for (const auto& dim : problem.dims) {
    const int64_t a = dim.in[left], b = dim.in[right];
    if (dim.out == 0) {
      result.k.dims.push_back({dim.size, a, b});
    } else if (b == 0) {
      result.m.dims.push_back({dim.size, a, dim.out});
    } else if (a == 0) {
      result.n.dims.push_back({dim.size, b, dim.out});
    } else {
      ProductDim both = dim;
      both.in = {a, b};
      result.batch.push_back(both);
      result.batches *= dim.size;
    }
  }
  return result;
}

// The same of three factors: the first, and the product of the others.
inline Matrices matrices_of_three(const SumOfProducts& problem) {
  Matrices result;
  result.a = problem.in[0];
  result.pair = {problem.in[1], problem.in[2]};
  result.out = problem.out;
  for (const auto& dim : problem.dims) {
    const std::array<int64_t, 2> pair = {dim.in[1], dim.in[2]};
    const bool in_pair = pair[0] != 0 || pair[1] != 0;
    if (dim.out == 0) {
      result.k.dims.push_back({dim.size, dim.in[0], 0, pair});
    } else if (!in_pair) {
      result.m.dims.push_back({dim.size, dim.in[0], dim.out});
    } else if (dim.in[0] == 0) {
      result.n.dims.push_back({dim.size, 0, dim.out, pair});
    } else {
      result.batch.push_back(dim);
      result.batches *= dim.size;
    }
  }
  return result;
}

// Of three factors: the first two, and in `weights` the batch indices as the third has them. Its
// strides along M and N stand in GroupDim::pair.
inline Matrices matrices_to_weigh(const SumOfProducts& problem,
                                  c10::SmallVectorImpl<ProductDim>& weights) {
  Matrices result;
  result.a = problem.in[0];
  result.b = problem.in[1];
  result.out = problem.out;
  for (const auto& dim : problem.dims) {
    const auto [a, b, weight] = dim.in;
    if (dim.out == 0 && b != 0) {
      result.k.dims.push_back({dim.size, a, b});
    } else if (dim.out == 0) {
      result.m.dims.push_back({dim.size, a, 0, {weight, 0}});
    } else if (a == 0) {
      result.n.dims.push_back({dim.size, b, dim.out, {weight, 0}});
    } else {
      result.batch.push_back(dim);
      weights.push_back({dim.size, 0, {0, weight, 0}});
      result.batches *= dim.size;
    }
  }
  return result;
}

// An estimate of processor cycles, to choose which factor is vectorised over.
template <typename acc_t>
double cycles(const Matrices& x) {
  constexpr double kWidth = at::vec::Vectorized<acc_t>::size();
  constexpr double kCopied = 0.25, kTransposed = 0.6;
  const double m = x.m.size(), n = x.n.size(), k = x.k.size();
  const int b_run = x.n.contiguous(&GroupDim::x), out_run = x.n.contiguous(&GroupDim::y);
  const double padded = std::ceil(n / kWidth) * kWidth;
  double sum = m * padded * k / kWidth;
  const bool a_rows = x.k.contiguous(&GroupDim::x) >= 0;
  const bool a_columns = x.m.contiguous(&GroupDim::x) >= 0;
  if (!x.uses_a_as_it_lies<acc_t>() || !(a_rows || a_columns)) {
    sum += m * k * (a_rows ? kCopied : kTransposed);
  }
  if (b_run >= 0 && out_run >= 0 && b_run != out_run) {
    sum += std::min(k, m) * n * (kTransposed - kCopied);
    sum += k * n * kCopied + m * n * kCopied;
  } else {
    if (!x.uses_b_as_it_lies<acc_t>() || b_run < 0) {
      sum += k * n * (b_run >= 0 ? kCopied : kTransposed);
    }
    sum += m * n * (out_run >= 0 ? kCopied : kTransposed);
  }
  return sum;
}

}  // namespace
}  // namespace pyext
