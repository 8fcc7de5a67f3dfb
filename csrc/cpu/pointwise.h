// Pointwise loops over a TensorIterator, vectorised, with float arithmetic for half types.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/TensorIterator.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/cpu/Loops.h>

namespace pyext {
namespace {

// Applies f to every element. f takes scalars of the arithmetic type and Vectorized of it, which
// is float for half and bfloat16, so one generic lambda serves body, tail and every dtype.
template <typename scalar_t, typename F, typename... Inputs>
void pointwise(at::TensorIteratorBase& iter, F f) {
  using math_t = at::opmath_type<scalar_t>;
  using Vec = at::vec::Vectorized<scalar_t>;
  constexpr bool is_binary = sizeof...(Inputs) == 2;
  static_assert(sizeof...(Inputs) == 1 || is_binary);
  if constexpr (std::is_same_v<scalar_t, math_t>) {
    at::native::cpu_kernel_vec(
        iter, [f](Inputs... x) -> scalar_t { return f(x...); },
        [f](at::vec::Vectorized<Inputs>... x) -> Vec { return f(x...); });
  } else if constexpr (is_binary) {
    at::native::cpu_kernel_vec(
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
    at::native::cpu_kernel_vec(
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
