// Elements of an operand in registers of a thread, from memory of any dtype and layout, and back.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "fused_adam_arguments.cuh"

namespace pyext {
namespace {

template <typename F>
__device__ __forceinline__ void with_dtype(at::ScalarType dtype, const F& f) {
  switch (dtype) {
    case at::kFloat:
      return f(float{});
    case at::kDouble:
      return f(double{});
    case at::kBFloat16:
      return f(at::BFloat16{});
    default:
      return f(at::Half{});
  }
}

// The values that storage of this dtype gives back.
template <typename T>
__device__ __forceinline__ T rounded(at::ScalarType dtype, T x) {
  T result;
  with_dtype(dtype, [&](auto zero) { result = static_cast<T>(static_cast<decltype(zero)>(x)); });
  return result;
}

// The rounding of a float32 copy: that of `split`, so that both give the same parameters.
__device__ __forceinline__ float rounded_copy(at::ScalarType dtype, float x) {
  if (dtype == at::kBFloat16) return float_of_bfloat16(bfloat16_nearest_away(x));
  return rounded(dtype, x);
}

// What each thread has of a tile: elements kThreads apart, so that a warp's accesses lie side by
// side whatever the dtype, and several are under way at a time.
template <typename T, int kCount>
struct Values {
  T of[kCount] = {};
  __device__ T& operator[](int k) { return of[k]; }
  __device__ const T& operator[](int k) const { return of[k]; }
};

template <typename T>
using Bits = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;

template <typename To, typename From>
__device__ __forceinline__ To as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <int kCount, typename List>
struct Elements {
  const List& list;
  const Record& record;
  int tensor;
  int64_t first;  // of this thread
  int64_t end;

  __device__ Elements(const List& from, int of_tensor, int64_t begin, int64_t of_end)
      : list(from),
        record(from.records[of_tensor]),
        tensor(of_tensor),
        first(begin + threadIdx.x),
        end(of_end) {}

  __device__ int64_t index(int k) const { return first + k * kThreads; }
  __device__ bool has(int k) const { return index(k) < end; }

  // Calls f(k, memory) for the elements that there are.
  template <typename S, typename F>
  __device__ __forceinline__ void each(int operand, const F& f) const {
    S* const data = static_cast<S*>(record.data[operand]);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (has(k)) f(k, data[list.offset(tensor, operand, index(k))]);
    }
  }

  // Memory as it is. Conversion is apart, behind the loads of all operands: it waits for its own.
  template <typename T>
  __device__ __forceinline__ Values<Bits<T>, kCount> fetch(int operand) const {
    Values<Bits<T>, kCount> bits;
    switch (record.dtype[operand]) {
      case at::kFloat:
        each<const float>(operand, [&](int k, float x) { bits[k] = as<Bits<T>>(T(x)); });
        break;
      case at::kDouble:
        each<const double>(operand, [&](int k, double x) { bits[k] = as<Bits<T>>(T(x)); });
        break;
      case at::kByte:
      case at::kChar:
        each<const uint8_t>(operand, [&](int k, uint8_t x) { bits[k] = x; });
        break;
      default:
        each<const uint16_t>(operand, [&](int k, uint16_t x) { bits[k] = x; });
    }
    return bits;
  }

  // The floating-point numbers that were fetched.
  template <typename T>
  __device__ __forceinline__ Values<T, kCount> values(int operand,
                                                      const Values<Bits<T>, kCount>& bits) const {
    Values<T, kCount> result;
    const auto dtype = record.dtype[operand];
    for (int k = 0; k < kCount; ++k) {
      if (dtype == at::kBFloat16) {
        result[k] = float_of_bfloat16(static_cast<uint16_t>(bits[k]));
      } else if (dtype == at::kHalf) {
        result[k] = at::Half(static_cast<uint16_t>(bits[k]), at::Half::from_bits());
      } else {
        result[k] = as<T>(bits[k]);
      }
    }
    return result;
  }

  template <typename T>
  __device__ __forceinline__ void store(int operand, const Values<T, kCount>& values) const {
    with_dtype(record.dtype[operand], [&](auto zero) {
      each<decltype(zero)>(
          operand, [&](int k, auto& memory) { memory = static_cast<decltype(zero)>(values[k]); });
    });
  }
};

}  // namespace
}  // namespace pyext
