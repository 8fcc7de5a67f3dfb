// One pass over blocks of logits, for a group of rows at a time: either one row whose classes are
// contiguous (a vector holds neighbouring classes), or as many rows as a vector has lanes, whose
// classes are `step` apart (a vector holds one class of neighbouring rows). The same loops serve
// both; only how a vector becomes a statistic of its row differs.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <limits>
#include <type_traits>

#include "cpu/blocks.h"

namespace pyext {
namespace {

template <typename acc_t, bool columns>
struct Walk {
  using Vec = at::vec::Vectorized<acc_t>;
  using Stat = std::conditional_t<columns, Vec, acc_t>;
  static constexpr int64_t kSize = Vec::size();
  static constexpr acc_t kMinusInfinity = -std::numeric_limits<acc_t>::infinity();

  static Stat sum(const Vec& v) {
    if constexpr (columns) {
      return v;
    } else {
      return at::vec::vec_reduce_all<acc_t>([](Vec a, Vec b) { return a + b; }, v);
    }
  }
  static Stat max(const Vec& v) {
    if constexpr (columns) {
      return v;
    } else {
      return at::vec::vec_reduce_all<acc_t>([](Vec a, Vec b) { return larger(a, b); }, v);
    }
  }
  // Not at::vec::maximum: a NaN need not survive here, the sum of exponentials finds it.
  static Vec larger(const Vec& a, const Vec& b) { return at::vec::clamp_min(a, b); }
  static acc_t larger(acc_t a, acc_t b) { return a < b ? b : a; }

  // The value of a per-class array for class i of the block.
  static Vec per_class(const acc_t* values, int64_t i, int64_t lanes) {
    if constexpr (columns) return Vec(values[i]);
    return lanes == kSize ? Vec::loadu(values + i)
                          : Vec::set(Vec(0), Vec::loadu(values + i, lanes), lanes);
  }

  static Stat load(const acc_t* values) {
    if constexpr (columns) return Vec::loadu(values);
    return *values;
  }
  static void store(acc_t* to, const Stat& value) {
    if constexpr (columns) {
      value.store(to);
    } else {
      *to = value;
    }
  }
  static bool any(bool condition) { return condition; }
  static bool any(const Vec& condition) {
    return condition.zero_mask() != (1 << kSize) - 1;  // a lane whose bits are not all 0
  }

  // Calls f(i, vector, lanes) over n classes from z, of the arithmetic type or of 16 bits; lanes
  // beyond the last class hold -inf.
  template <typename scalar_t, typename F>
  static void each(const scalar_t* z, int64_t step, int64_t n, F&& f) {
    if constexpr (columns) {
      for (int64_t i = 0; i < n; ++i) f(i, load_vector<acc_t>(z + i * step), kSize);
    } else {
      int64_t i = 0;
      for (; i + kSize <= n; i += kSize) f(i, load_vector<acc_t>(z + i), kSize);
      if (i < n) {
        const int64_t lanes = n - i;
        f(i, Vec::set(Vec(kMinusInfinity), load_lanes<acc_t>(z + i, lanes), lanes), lanes);
      }
    }
  }
  // Where f's result for class i goes.
  static acc_t* at(acc_t* base, int64_t step, int64_t i) { return base + (columns ? i * step : i); }
  // Only the lanes that hold classes count.
  static Vec valid(const Vec& v, int64_t lanes) {
    return lanes == kSize ? v : Vec::set(Vec(0), v, lanes);
  }
};

// Memory that will be read, and written, while the walk stands at class 0; later classes follow at
// `width` bytes. The hardware's own prefetch ends with each page, and a page is soon read.
struct Soon {
  const char* read;
  const char* written;  // or null
  int64_t width;

  void fetch(int64_t i) const { __builtin_prefetch(read + i * width); }
  void claim(int64_t i) const {
    if (written != nullptr) __builtin_prefetch(written + i * width, /*write=*/1);
  }
};

}  // namespace
}  // namespace pyext
