// Pointwise loops over a TensorIterator, vectorised, with float arithmetic for half types.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/TensorIterator.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/cpu/Loops.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "cpu/store.h"

namespace pyext {
namespace {

// out = f(in[0], ...) for n contiguous values.
template <Store way, typename scalar_t, size_t inputs, typename F>
void contiguous_run(scalar_t* out, const std::array<const scalar_t*, inputs>& in, int64_t n,
                    const F& f) {
  using Vec = at::vec::Vectorized<scalar_t>;
  constexpr int64_t kAhead = kFetchAhead / sizeof(scalar_t);
  const auto at = [&](int64_t i, int64_t count) {
    return std::apply([&](auto... x) { return f(Vec::loadu(x + i, count)...); }, in);
  };
  int64_t i = way == Store::kPastCaches ? std::min(n, until_aligned(out)) : 0;
  if (i > 0) at(0, i).store(out, i);
  for (; i + Vec::size() <= n; i += Vec::size()) {
    if constexpr (way == Store::kPastCaches) {
      for (const scalar_t* x : in) __builtin_prefetch(x + i + kAhead);
    }
    put<way>(out + i, std::apply([&](auto... x) { return f(Vec::loadu(x + i)...); }, in));
  }
  if (i < n) at(i, n - i).store(out + i, n - i);
  finish_stores<way>();
}

// As at::native::cpu_kernel_vec; where all tensors are contiguous and the result is none of the
// inputs, its lines are stored as store.h says.
template <typename scalar_t, size_t inputs, typename Op, typename VecOp>
void vectorized_loop(at::TensorIteratorBase& iter, Op op, VecOp vec_op) {
  auto any_strides = at::native::make_vectorized_loop2d(Op(op), VecOp(vec_op));
  const bool large = iter.numel() * static_cast<int64_t>(sizeof(scalar_t)) >= kTooLargeForCaches;
  const auto loop = [&](char** data, const int64_t* strides, int64_t n, int64_t rows) {
    bool plain = rows == 1;
    for (size_t k = 0; k <= inputs; ++k) {
      plain &= strides[k] == sizeof(scalar_t) && (k == 0 || data[k] != data[0]);
    }
    if (!plain) return any_strides(data, strides, n, rows);
    std::array<const scalar_t*, inputs> in;
    for (size_t k = 0; k < inputs; ++k) in[k] = reinterpret_cast<const scalar_t*>(data[k + 1]);
    const auto run = large ? contiguous_run<Store::kPastCaches, scalar_t, inputs, VecOp>
                           : contiguous_run<Store::kFetched, scalar_t, inputs, VecOp>;
    run(reinterpret_cast<scalar_t*>(data[0]), in, n, vec_op);
  };
  iter.for_each(loop, at::internal::GRAIN_SIZE);
  iter.cast_outputs();
}

// Applies f to every element. f takes scalars of the arithmetic type and Vectorized of it, which
// is float for half and bfloat16, so one generic lambda serves body, tail and every dtype.
template <typename scalar_t, typename F, typename... Inputs>
void pointwise(at::TensorIteratorBase& iter, F f) {
  using math_t = at::opmath_type<scalar_t>;
  using Vec = at::vec::Vectorized<scalar_t>;
  constexpr bool is_binary = sizeof...(Inputs) == 2;
  static_assert(sizeof...(Inputs) == 1 || is_binary);
  if constexpr (std::is_same_v<scalar_t, math_t>) {
    vectorized_loop<scalar_t, sizeof...(Inputs)>(
        iter, [f](Inputs... x) -> scalar_t { return f(x...); },
        [f](at::vec::Vectorized<Inputs>... x) -> Vec { return f(x...); });
  } else if constexpr (is_binary) {
    vectorized_loop<scalar_t, sizeof...(Inputs)>(
        iter,
        [f](scalar_t a, scalar_t b) -> scalar_t {
          return f(static_cast<math_t>(a), static_cast<math_t>(b));
        },
        [f](Vec a, Vec b) -> Vec {
          const auto [a0, a1] = at::vec::convert_to_float<scalar_t>(a);
          const auto [b0, b1] = at::vec::convert_to_float<scalar_t>(b);
          return at::vec::convert_from_float<scalar_t>(f(a0, b0), f(a1, b1));
        });
  } else {
    vectorized_loop<scalar_t, sizeof...(Inputs)>(
        iter, [f](scalar_t a) -> scalar_t { return f(static_cast<math_t>(a)); },
        [f](Vec a) -> Vec {
          const auto [a0, a1] = at::vec::convert_to_float<scalar_t>(a);
          return at::vec::convert_from_float<scalar_t>(f(a0), f(a1));
        });
  }
}

template <typename scalar_t, typename F>
void pointwise_unary(at::TensorIteratorBase& iter, F f) {
  pointwise<scalar_t, F, scalar_t>(iter, f);
}

template <typename scalar_t, typename F>
void pointwise_binary(at::TensorIteratorBase& iter, F f) {
  pointwise<scalar_t, F, scalar_t, scalar_t>(iter, f);
}

}  // namespace
}  // namespace pyext
