// The inner loops of sums of products: over vectors whose lanes are neighbouring results, or
// neighbouring terms of one result.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "contraction.h"
#include "cpu/store.h"
#include "math.h"

namespace pyext {
namespace {

// Up to kMaxFactors pointers into memory of the arithmetic type.
template <typename T>
using Pointers = std::array<const T*, kMaxFactors>;
using Strides = std::array<int64_t, kMaxFactors>;

// A run of one summed index: its length and its stride in each factor, vectors before scalars.
struct Run {
  int64_t count = 1;
  Strides step = {};
};

template <int begin, typename T>
T product_of(const Pointers<T>& x, int end, int64_t i, const Strides& step) {
  T product(1);
  if constexpr (begin < kMaxFactors) {
    for (int f = begin; f < end; ++f) product = product * x[f][i * step[f]];
  }
  return product;
}

// sums[l] (+)= sum over the run of x[0][l] x[1][l] ... times the scalars x[vectors], ...
template <typename T, int vectors>
void sum_side_by_side(T* sums, int64_t lanes, const Pointers<T>& x, int factors, const Run& run,
                      bool accumulate) {
  using Vec = at::vec::Vectorized<T>;
  constexpr int kWidth = Vec::size(), kUnrolled = 4;
  const auto term = [&](auto load, int64_t i, int64_t l, auto one) {
    auto value = decltype(one)(product_of<vectors>(x, factors, i, run.step));
    for (int f = 0; f < vectors; ++f) value = value * load(x[f] + i * run.step[f] + l);
    return value;
  };
  const auto load_vector = [](const T* from) { return Vec::loadu(from); };
  int64_t l = 0;
  for (; l + kUnrolled * kWidth <= lanes; l += kUnrolled * kWidth) {
    Vec sum[kUnrolled];
#pragma GCC unroll 4
    for (int u = 0; u < kUnrolled; ++u) sum[u] = Vec(T(0));
    for (int64_t i = 0; i < run.count; ++i) {
      const Vec scalar(product_of<vectors>(x, factors, i, run.step));
#pragma GCC unroll 4
      for (int u = 0; u < kUnrolled; ++u) {
        if constexpr (vectors == 0) {
          sum[u] = sum[u] + scalar;
        } else {
          Vec value = Vec::loadu(x[0] + i * run.step[0] + l + u * kWidth);
          for (int f = 1; f < vectors; ++f) {
            value = value * Vec::loadu(x[f] + i * run.step[f] + l + u * kWidth);
          }
          sum[u] = multiply_add(scalar, value, sum[u]);
        }
      }
    }
#pragma GCC unroll 4
    for (int u = 0; u < kUnrolled; ++u) {
      T* to = sums + l + u * kWidth;
      (accumulate ? Vec::loadu(to) + sum[u] : sum[u]).store(to);
    }
  }
  for (; l + kWidth <= lanes; l += kWidth) {
    Vec sum(T(0));
    for (int64_t i = 0; i < run.count; ++i) sum = sum + term(load_vector, i, l, Vec());
    (accumulate ? Vec::loadu(sums + l) + sum : sum).store(sums + l);
  }
  for (; l < lanes; ++l) {
    T sum(0);
    for (int64_t i = 0; i < run.count; ++i) {
      sum = sum + term([](const T* from) { return *from; }, i, l, T());
    }
    sums[l] = accumulate ? sums[l] + sum : sum;
  }
}

// out[r][l] = x[0][r][l] x[1][r][l] ... times the scalars x[vectors][r], ...: rows of products of
// which nothing is summed.
template <typename T, int vectors, Store way = Store::kInCache>
void multiply_rows(T* out, int64_t out_step, int64_t rows, int64_t lanes, Pointers<T> x,
                   int factors, const Strides& row_step) {
  using Vec = at::vec::Vectorized<T>;
  constexpr int64_t kWidth = Vec::size(), kAhead = kFetchAhead / sizeof(T);
  for (int64_t r = 0; r < rows; ++r) {
    const Vec scalar(product_of<vectors>(x, factors, 0, {}));
    const auto part = [&](int64_t l, int64_t count) {
      Vec value = scalar;
      for (int f = 0; f < vectors; ++f) value = value * Vec::loadu(x[f] + l, count);
      value.store(out + l, count);
    };
    int64_t l = 0;
    if constexpr (way == Store::kPastCaches) {
      l = std::min(lanes, until_aligned(out));
      if (l > 0) part(0, l);
    }
    for (; l + kWidth <= lanes; l += kWidth) {
      Vec value = scalar;
      for (int f = 0; f < vectors; ++f) {
        if constexpr (way == Store::kPastCaches) __builtin_prefetch(x[f] + l + kAhead);
        value = value * Vec::loadu(x[f] + l);
      }
      put<way>(out + l, value);
    }
    if (l < lanes) part(l, lanes - l);
    out += out_step;
    for (int f = 0; f < factors; ++f) x[f] += row_step[f];
  }
  finish_stores<way>();
}

// For `rows` results at once, whose factors lie row_step apart:
//
//   sum[r] += scalar[r] * sum over `lanes` contiguous values of x[0] x[1] ...
//
// `sum` keeps the lanes apart; what does not fill a vector goes to `rest`. Several rows are several
// streams from memory, which one row alone cannot keep busy. A row's sum is the same with any
// others.
template <typename T, int vectors, int rows>
void sum_along(at::vec::Vectorized<T>* sum, T* rest, int64_t lanes, const Pointers<T>& x,
               const Strides& row_step, const T* scalar) {
  using Vec = at::vec::Vectorized<T>;
  constexpr int64_t kWidth = Vec::size(), kBlock = 64 * kWidth;
  const auto added = [&](auto load, int r, int64_t l, const auto& to) {
    auto value = load(x[0] + r * row_step[0] + l);
    if constexpr (vectors == 1) return to + value;
    for (int f = 1; f + 1 < vectors; ++f) value = value * load(x[f] + r * row_step[f] + l);
    constexpr int last = vectors - 1;
    return multiply_add(value, load(x[last] + r * row_step[last] + l), to);
  };
  const auto load_vector = [](const T* from) { return Vec::loadu(from); };
  const int64_t whole = lanes / kWidth * kWidth;
  // In blocks, so that long sums keep their digits.
  for (int64_t begin = 0; begin < whole; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, whole);
    Vec even[rows], odd[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) even[r] = odd[r] = Vec(T(0));
    int64_t l = begin;
    for (; l + 2 * kWidth <= end; l += 2 * kWidth) {
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        even[r] = added(load_vector, r, l, even[r]);
        odd[r] = added(load_vector, r, l + kWidth, odd[r]);
      }
    }
    for (; l < end; l += kWidth) {
      for (int r = 0; r < rows; ++r) even[r] = added(load_vector, r, l, even[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) sum[r] = multiply_add(Vec(scalar[r]), even[r] + odd[r], sum[r]);
  }
  for (int64_t l = whole; l < lanes; ++l) {
    for (int r = 0; r < rows; ++r) {
      rest[r] = rest[r] + scalar[r] * added([](const T* from) { return *from; }, r, l, T(0));
    }
  }
}

}  // namespace
}  // namespace pyext
