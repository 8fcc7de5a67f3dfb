// The moments of a block as the update meets them: vectors of values, read and written as they are
// stored. Each class has load(which, i, lanes) and store(which, i, lanes, values) for the vector
// that begins with element i of the block, of which `lanes` elements are there; `which` counts m, v
// and the largest v. They stand in the innermost loop, so all of it is inlined, whatever the
// compiler thinks of their number.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <type_traits>

#include "cpu/blocks.h"
#include "fused_adam.h"

namespace pyext {
namespace {

// Integers beside the lanes of a vector of floats: over them GCC makes vectors where it does not
// over loops.
constexpr int kFloatLanes = at::vec::Vectorized<float>::size();
typedef float Floats __attribute__((vector_size(4 * kFloatLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kFloatLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kFloatLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kFloatLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kFloatLanes)));

// Bytes that hold integers of type Stored, uint8_t or int8_t. GCC widens vectors twofold, not more.
template <typename Stored>
[[gnu::always_inline]] inline Ints widened(const Bytes& bytes) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m128i from = std::bit_cast<__m128i>(bytes);
  return std::bit_cast<Ints>(std::is_signed_v<Stored> ? _mm512_cvtepi8_epi32(from)
                                                      : _mm512_cvtepu8_epi32(from));
#else
  typedef Stored Same __attribute__((vector_size(kFloatLanes)));
  typedef int16_t Twice __attribute__((vector_size(2 * kFloatLanes)));
  const Twice halves = __builtin_convertvector(std::bit_cast<Same>(bytes), Twice);
  return __builtin_convertvector(halves, Ints);
#endif
}

[[gnu::always_inline]] inline Bytes narrowed(const Ints& ints) {
#if defined(CPU_CAPABILITY_AVX512)
  return __builtin_convertvector(ints, Bytes);
#else
  return __builtin_convertvector(__builtin_convertvector(ints, Halves), Bytes);
#endif
}

// The thresholds of neighbouring elements, vector after vector.
class Thresholds {
 public:
  explicit Thresholds(uint16_t first) {
    Ints strides;
    for (int l = 0; l < kFloatLanes; ++l) strides[l] = l * Dither::kStride;
    next_ = (strides + first) & 0xffff;
  }
  [[gnu::always_inline]] Ints next() {
    const Ints result = next_;
    next_ = (next_ + Dither::kStride * kFloatLanes) & 0xffff;
    return result;
  }

 private:
  Ints next_;
};

// Lanes of a vector to memory, or from there.
template <typename To, typename From>
[[gnu::always_inline]] inline void copy_lanes(To* to, const From* from, int64_t lanes) {
  constexpr size_t kWhole = std::max(sizeof(To), sizeof(From));
  if (lanes == kFloatLanes) {
    std::memcpy(to, from, kWhole);
  } else {
    std::memcpy(to, from, lanes * (kWhole / kFloatLanes));
  }
}

// Of the arithmetic type, or bfloat16 rounded to the nearest.
template <typename acc_t, typename moment_t>
struct PlainMoments {
  using Vec = at::vec::Vectorized<acc_t>;

  [[gnu::always_inline]] Vec load(int which, int64_t i, int64_t lanes) const {
    return load_lanes<acc_t>(values[which] + i, lanes);
  }
  [[gnu::always_inline]] void store(int which, int64_t i, int64_t lanes, const Vec& x) const {
    store_lanes(values[which] + i, lanes, x);
  }

  moment_t* values[3];
};

// bfloat16, rounded up or down by thresholds: bfloat16_stochastic of low_precision.h.
class DitheredMoments : public PlainMoments<float, at::BFloat16> {
 public:
  // Of a block that begins with element `first`.
  DitheredMoments(const PlainMoments& where, const Dither (&dither)[3], int64_t first)
      : PlainMoments(where),
        thresholds_{Thresholds(dither[0][first]), Thresholds(dither[1][first]),
                    Thresholds(dither[2][first])} {}

  [[gnu::always_inline]] void store(int which, int64_t i, int64_t lanes, const Vec& x) {
    auto bits = std::bit_cast<Words>(x);
    add_low_bits(bits, std::bit_cast<Words>(thresholds_[which].next()));
    const Halves upper = __builtin_convertvector(bits >> 16, Halves);
    copy_lanes(values[which] + i, &upper, lanes);
  }

 private:
  Thresholds thresholds_[3];
};

// Codes of 8 bits, of up to kCodeBlock elements that share scales. Values wait in scratch until
// all of them are known.
class CodedMoments {
 public:
  using Vec = at::vec::Vectorized<float>;

  // Of m and v, and of the largest v if `count` is three.
  CodedMoments(const AdamTensor& t, int count, int64_t begin, const std::array<float*, 3>& scratch)
      : count_(count), values_(scratch) {
    for (int k = 0; k < count; ++k) {
      codes_[k] = static_cast<uint8_t*>(t.operands[AdamTensor::kExpAvg + k].data) + begin;
      scales_[k] =
          static_cast<float*>(t.operands[AdamTensor::kExpAvgScale + k].data) + begin / kCodeBlock;
      units_[k] = Vec(k == 0 ? first_moment_unit(*scales_[k]) : second_moment_unit(*scales_[k]));
      largest_[k] = Words{};
    }
  }

  [[gnu::always_inline]] Vec load(int which, int64_t i, int64_t lanes) const {
    const uint8_t* const from = codes_[which] + i;
    return which == 0 ? first_moment_of(load_codes<int8_t>(from, lanes), units_[which])
                      : second_moment_of(load_codes<uint8_t>(from, lanes), units_[which]);
  }

  // What lanes without an element hold was formed of zeros, and is zero.
  [[gnu::always_inline]] void store(int which, int64_t i, int64_t, const Vec& x) {
    x.store(values_[which] + i);
    // Magnitudes are ordered as their bits are, with NaN above infinity; v has no sign.
    const auto bits = std::bit_cast<Words>(x), magnitude = which == 0 ? bits & 0x7fffffff : bits;
    largest_[which] = magnitude > largest_[which] ? magnitude : largest_[which];
  }

  // Forms the codes of `n` values, of which the first is `element`.
  void encode(const Dither (&dither)[3], int64_t element, int64_t n) const {
    float scales[3];
    for (int k = 0; k < count_; ++k) {
      uint32_t largest = 0;
      for (int l = 0; l < kFloatLanes; ++l) largest = std::max(largest, largest_[k][l]);
      *scales_[k] = scales[k] = float_of(largest);
    }
    for (int k = 0; k < count_; ++k) {
      const Thresholds thresholds(dither[k][element]);
      if (k == 0) {
        const Vec factor(first_moment_factor(scales[0]));
        encode(0, n, thresholds, [&](const Vec& x, const Ints& thresholds_of_x) {
          return first_moment_code(ints(first_moment_root(x, factor)), thresholds_of_x);
        });
      } else {
        const Vec factor(second_moment_factor(scales[k]));
        encode(k, n, thresholds, [&](const Vec& x, const Ints& thresholds_of_x) {
          return second_moment_code(ints(second_moment_root(x, factor)), thresholds_of_x,
                                    std::bit_cast<Ints>(x));
        });
      }
    }
  }

 private:
  template <typename code_t>
  [[gnu::always_inline]] static Vec load_codes(const uint8_t* from, int64_t lanes) {
    Bytes codes{};
    copy_lanes(&codes, from, lanes);
    return std::bit_cast<Vec>(__builtin_convertvector(widened<code_t>(codes), Floats));
  }

  [[gnu::always_inline]] static Ints ints(const Vec& x) {
    return __builtin_convertvector(std::bit_cast<Floats>(x), Ints);
  }

  template <typename F>
  [[gnu::always_inline]] void encode(int which, int64_t n, Thresholds thresholds,
                                     const F& code_of) const {
    const auto encode_some = [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
      const Ints code = code_of(Vec::loadu(values_[which] + i), thresholds.next());
      const Bytes codes = narrowed(code);
      copy_lanes(codes_[which] + i, &codes, lanes);
    };
    int64_t i = 0;
    for (; i + kFloatLanes <= n; i += kFloatLanes) encode_some(i, kFloatLanes);
    if (i < n) encode_some(i, n - i);
  }

  int count_;
  std::array<float*, 3> values_;
  uint8_t* codes_[3];
  float* scales_[3];
  Vec units_[3];
  Words largest_[3];
};

}  // namespace
}  // namespace pyext
