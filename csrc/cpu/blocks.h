// Blocks of a strided tensor of any floating dtype to and from contiguous scratch of the arithmetic
// type, so that kernels are written for float and double alone.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/core/impl/alloc_cpu.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>

namespace pyext {
namespace {

// Uninitialised scratch on a cache line of its own: a vector that straddles two lines costs twice.
struct FreeScratch {
  void operator()(void* data) const { c10::free_cpu(data); }
};
template <typename T>
using Scratch = std::unique_ptr<T[], FreeScratch>;
template <typename T>
Scratch<T> make_scratch(int64_t count) {
  return Scratch<T>(static_cast<T*>(c10::alloc_cpu(count * sizeof(T))));
}

template <typename F>
void dispatch_dtype(at::ScalarType dtype, F&& f) {
  switch (dtype) {
    case at::kFloat:
      return f(float{});
    case at::kDouble:
      return f(double{});
    case at::kBFloat16:
      return f(at::BFloat16{});
    case at::kHalf:
      return f(at::Half{});
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "expected a floating-point dtype, got ", dtype);
  }
}

// A vector of the arithmetic type from storage of that type or of 16 bits, and back.
template <typename acc_t, typename scalar_t>
at::vec::Vectorized<acc_t> load_vector(const scalar_t* from) {
  at::vec::Vectorized<acc_t> values;
  if constexpr (std::is_same_v<acc_t, scalar_t>) {
    values = at::vec::Vectorized<acc_t>::loadu(from);
  } else {
    at::vec::load_to_float<scalar_t>(from, values);
  }
  return values;
}
template <typename acc_t, typename scalar_t>
void store_vector(scalar_t* to, const at::vec::Vectorized<acc_t>& values) {
  if constexpr (std::is_same_v<acc_t, scalar_t>) {
    values.store(to);
  } else {
    const at::vec::VectorizedN<acc_t, 1> wide(values);
    const at::vec::Vectorized<scalar_t> narrow = at::vec::convert<scalar_t, 1, acc_t, 1>(wide);
    std::memcpy(to, &narrow, values.size() * sizeof(scalar_t));
  }
}

template <typename acc_t, typename scalar_t>
void load_run(acc_t* to, const scalar_t* from, int64_t stride, int64_t count) {
  int64_t i = 0;
  if (stride == 1) {
    if constexpr (std::is_same_v<acc_t, float> && c10::is_reduced_floating_point_v<scalar_t>) {
      constexpr int64_t kWidth = at::vec::Vectorized<float>::size();
      for (; i + kWidth <= count; i += kWidth) load_vector<float>(from + i).store(to + i);
    } else {
      at::vec::convert(from, to, count);
      return;
    }
  }
  for (; i < count; ++i) to[i] = static_cast<acc_t>(from[i * stride]);
}

// count values, `stride` apart, of a tensor at element `offset`.
template <typename acc_t>
void load_run(acc_t* to, const void* tensor, at::ScalarType dtype, int64_t offset, int64_t stride,
              int64_t count) {
  dispatch_dtype(dtype, [&](auto zero) {
    load_run(to, static_cast<const decltype(zero)*>(tensor) + offset, stride, count);
  });
}

template <typename acc_t>
acc_t load_one(const void* tensor, at::ScalarType dtype, int64_t offset) {
  acc_t value;
  load_run(&value, tensor, dtype, offset, /*stride=*/0, 1);
  return value;
}

// As load_vector and store_vector for the lanes that are there; the others are 0.
template <typename acc_t, typename scalar_t>
[[gnu::always_inline]] inline at::vec::Vectorized<acc_t> load_lanes(const scalar_t* from,
                                                                    int64_t lanes) {
  using Vec = at::vec::Vectorized<acc_t>;
  if (lanes == Vec::size()) return load_vector<acc_t>(from);
  if constexpr (std::is_same_v<acc_t, scalar_t>) {
    return Vec::loadu(from, lanes);
  } else {
    acc_t some[Vec::size()] = {};
    load_run(some, from, /*stride=*/1, lanes);
    return Vec::loadu(some);
  }
}

template <typename acc_t, typename scalar_t>
[[gnu::always_inline]] inline void store_lanes(scalar_t* to, int64_t lanes,
                                               const at::vec::Vectorized<acc_t>& values) {
  using Vec = at::vec::Vectorized<acc_t>;
  if (lanes == Vec::size()) return store_vector(to, values);
  if constexpr (std::is_same_v<acc_t, scalar_t>) {
    values.store(to, static_cast<int>(lanes));
  } else {
    acc_t some[Vec::size()];
    values.store(some);
    at::vec::convert(some, to, lanes);
  }
}

template <typename acc_t>
void store_run(void* tensor, at::ScalarType dtype, int64_t offset, int64_t stride, int64_t count,
               const acc_t* from) {
  dispatch_dtype(dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* to = static_cast<scalar_t*>(tensor) + offset;
    if (stride == 1) {
      at::vec::convert(from, to, count);
    } else {
      for (int64_t i = 0; i < count; ++i) to[i * stride] = static_cast<scalar_t>(from[i]);
    }
  });
}

}  // namespace
}  // namespace pyext
