// Numbers of every dtype that einsum takes, and the types that their sums are formed in: float for
// 16-bit types, and unsigned integers for signed ones, whose overflow is defined.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/complex.h>

#include <cstdint>
#include <type_traits>

namespace pyext {
namespace {

constexpr int kVectorBytes = 16;  // the widest load

// In place of the type of an element where it is known at run time: one of those summed in acc_t.
template <typename acc_t>
struct Mixed {};

template <typename Element>
struct SumTypeOf {
  using type = Element;
};
template <>
struct SumTypeOf<at::BFloat16> {
  using type = float;
};
template <>
struct SumTypeOf<at::Half> {
  using type = float;
};
template <>
struct SumTypeOf<int32_t> {
  using type = uint32_t;
};
template <>
struct SumTypeOf<int64_t> {
  using type = uint64_t;
};
template <typename acc_t>
struct SumTypeOf<Mixed<acc_t>> {
  using type = acc_t;
};
template <typename Element>
using SumType = typename SumTypeOf<Element>::type;

// Calls f with a value of the C++ type of a dtype that is summed in acc_t.
template <typename acc_t, typename F>
__device__ auto with_type(at::ScalarType dtype, const F& f) {
  if constexpr (std::is_same_v<acc_t, float>) {
    if (dtype == at::kBFloat16) return f(at::BFloat16());
    if (dtype == at::kHalf) return f(at::Half());
    return f(float());
  } else if constexpr (std::is_same_v<acc_t, uint32_t>) {
    if (dtype == at::kShort) return f(int16_t());
    if (dtype == at::kChar) return f(int8_t());
    if (dtype == at::kByte) return f(uint8_t());
    if (dtype == at::kBool) return f(bool());
    return f(int32_t());
  } else if constexpr (std::is_same_v<acc_t, uint64_t>) {
    return f(int64_t());
  } else {
    return f(acc_t());
  }
}

struct Factor {
  const void* data;
  at::ScalarType dtype;
  bool broadcast;  // one value for all of a unit
};

template <typename Element, typename acc_t = SumType<Element>>
__device__ acc_t load_value(const Factor& from, int64_t offset) {
  if constexpr (std::is_same_v<Element, Mixed<acc_t>>) {
    return with_type<acc_t>(from.dtype, [&](auto zero) {
      return static_cast<acc_t>(static_cast<const decltype(zero)*>(from.data)[offset]);
    });
  } else {
    return static_cast<acc_t>(static_cast<const Element*>(from.data)[offset]);
  }
}

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

// A unit is kWidth neighbours, or one value.
template <typename Element, int kWidth, typename acc_t = SumType<Element>>
__device__ void load_unit(acc_t (&to)[kWidth], const Factor& from, int64_t offset) {
  if constexpr (kWidth > 1) {
    if (!from.broadcast) {
      const Element* const first = static_cast<const Element*>(from.data) + offset;
      const auto pack = *reinterpret_cast<const Pack<Element, kWidth>*>(first);
#pragma unroll
      for (int w = 0; w < kWidth; ++w) to[w] = static_cast<acc_t>(pack.values[w]);
      return;
    }
  }
  const acc_t value = load_value<Element>(from, offset);
#pragma unroll
  for (int w = 0; w < kWidth; ++w) to[w] = value;
}

// As few stores as kVectorBytes allow; `to` must be aligned to them.
template <typename T, int kWidth>
__device__ void store_packs(T* to, const T (&values)[kWidth]) {
  constexpr int kMost = kVectorBytes / static_cast<int>(sizeof(T));
  constexpr int kCount = kWidth < kMost ? kWidth : kMost;
#pragma unroll
  for (int first = 0; first < kWidth; first += kCount) {
    Pack<T, kCount> pack;
#pragma unroll
    for (int w = 0; w < kCount; ++w) pack.values[w] = values[first + w];
    *reinterpret_cast<Pack<T, kCount>*>(to + first) = pack;
  }
}

// Where sums go: out = alpha * sum + beta * out.
template <typename acc_t>
struct Result {
  void* data;
  at::ScalarType dtype;
  acc_t alpha = acc_t(1), beta = acc_t(0);
  bool scales = false;      // alpha is not 1: in complex numbers, 1 * inf is inf + NaN i
  bool adds = false;        // beta is not 0
  bool packed = false;      // units are contiguous and aligned
  int64_t unit_stride = 0;  // of the values of a unit

  // The first `count` of the sums: all of them, or one.
  template <int kWidth>
  __device__ void store(int64_t offset, const acc_t (&sums)[kWidth], int count) const {
    with_type<acc_t>(dtype, [&](auto zero) {
      using out_t = decltype(zero);
      out_t* const to = static_cast<out_t*>(data) + offset;
      out_t values[kWidth];
#pragma unroll
      for (int w = 0; w < kWidth; ++w) {
        if (w >= count) break;
        acc_t value = scales ? alpha * sums[w] : sums[w];
        if (adds) value = value + beta * static_cast<acc_t>(to[w * unit_stride]);
        values[w] = static_cast<out_t>(value);
      }
      if (packed) return store_packs(to, values);
#pragma unroll
      for (int w = 0; w < kWidth; ++w) {
        if (w < count) to[w * unit_stride] = values[w];
      }
    });
  }
};

}  // namespace
}  // namespace pyext
