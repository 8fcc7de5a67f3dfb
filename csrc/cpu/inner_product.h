// The sum of x y.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>

#include "contraction.h"
#include "cpu/blocks.h"
#include "math.h"

namespace pyext {
namespace {

// In double.
template <typename acc_t>
double sum_of_lanes(const at::vec::Vectorized<acc_t>& x) {
  acc_t lanes[at::vec::Vectorized<acc_t>::size()];
  x.store(lanes);
  double total = 0;
  for (const acc_t lane : lanes) total += static_cast<double>(lane);
  return total;
}

// In short runs of the arithmetic that are added up in double.
template <typename acc_t>
double inner_product(const acc_t* x, const acc_t* y, int64_t count) {
  using Vec = at::vec::Vectorized<acc_t>;
  constexpr int64_t kWidth = Vec::size(), kRun = 64 * kWidth;
  double total = 0;
  int64_t i = 0;
  while (i + kWidth <= count) {
    const int64_t end = std::min(i + kRun, count);
    Vec even(acc_t(0)), odd(acc_t(0));
    for (; i + 2 * kWidth <= end; i += 2 * kWidth) {
      even = multiply_add(Vec::loadu(x + i), Vec::loadu(y + i), even);
      odd = multiply_add(Vec::loadu(x + i + kWidth), Vec::loadu(y + i + kWidth), odd);
    }
    for (; i + kWidth <= end; i += kWidth) {
      even = multiply_add(Vec::loadu(x + i), Vec::loadu(y + i), even);
    }
    total += sum_of_lanes(even + odd);
  }
  for (; i < count; ++i) total += static_cast<double>(x[i]) * static_cast<double>(y[i]);
  return total;
}

// The same over `count` elements of contiguous tensors of any dtype, from element `begin` on.
template <typename acc_t>
double inner_product(const ProductTensor& x, const ProductTensor& y, int64_t begin, int64_t count) {
  constexpr int64_t kRun = 4096;
  alignas(64) acc_t x_run[kRun], y_run[kRun];
  double total = 0;
  for (const int64_t end = begin + count; begin < end; begin += kRun) {
    const int64_t run = std::min(kRun, end - begin);
    load_run(x_run, x.data, x.dtype, begin, 1, run);
    load_run(y_run, y.data, y.dtype, begin, 1, run);
    total += inner_product(x_run, y_run, run);
  }
  return total;
}

}  // namespace
}  // namespace pyext
