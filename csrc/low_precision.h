// Numbers of 8 and 16 bits that stand for floats: how they round, and what they keep beside them.
#pragma once

#include <cstdint>
#include <cstring>

#include "math.h"

namespace pyext {

PYEXT_HOST_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

PYEXT_HOST_DEVICE float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

PYEXT_HOST_DEVICE float float_of_bfloat16(uint16_t bits) { return float_of(uint32_t{bits} << 16); }

// Adds to the 16 low bits of a float; a NaN stays one. Bits: uint32_t or a vector of them.
template <typename Bits>
PYEXT_HOST_DEVICE void add_low_bits(Bits& bits, const Bits& added) {
  bits = (bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : bits + added;
}

// The 16 high bits of x after `added` was added to the 16 low ones.
PYEXT_HOST_DEVICE uint16_t upper_bits(float x, uint32_t added) {
  uint32_t bits = bits_of(x);
  add_low_bits(bits, added);
  return static_cast<uint16_t>(bits >> 16);
}

// To the nearest bfloat16, the even one of two.
PYEXT_HOST_DEVICE uint16_t bfloat16_nearest(float x) {
  return upper_bits(x, 0x7fff + (bits_of(x) >> 16 & 1));
}

// To the nearest bfloat16, of two the one away from zero: what `split` needs, so that the
// difference always fits 16 bits.
PYEXT_HOST_DEVICE uint16_t bfloat16_nearest_away(float x) { return upper_bits(x, 0x8000); }

// To one of the two neighbours, with the probability that makes the mean right.
PYEXT_HOST_DEVICE uint16_t bfloat16_stochastic(float x, uint16_t random) {
  return upper_bits(x, random);
}

// A float as the bfloat16 nearest to it and the 16 bits that are left, without loss.
struct SplitFloat {
  uint16_t high;
  int16_t low;
};

PYEXT_HOST_DEVICE SplitFloat split(float x) {
  const uint16_t high = bfloat16_nearest_away(x);
  return {high, static_cast<int16_t>(bits_of(x) - (uint32_t{high} << 16))};
}

PYEXT_HOST_DEVICE float joined(SplitFloat x) {
  return float_of((uint32_t{x.high} << 16) + static_cast<uint32_t>(int32_t{x.low}));
}

// Moments in 8 bits, in blocks that share a scale, the largest magnitude of the block. Codes stand
// for powers of evenly spaced numbers, so that small values keep digits: squares for the first
// moment, fourth powers (squares of a root that is itself a square) for the second.
constexpr int64_t kCodeBlock = 256;

PYEXT_HOST_DEVICE float first_moment_of(int8_t code, float scale) {
  const float root = code * (1.0f / 127);
  return root * absolute(root) * scale;
}

PYEXT_HOST_DEVICE float second_moment_of(uint8_t code, float scale) {
  const float root = code * (1.0f / 255), square = root * root;
  return square * square * scale;
}

// Up or down by a threshold of 16 bits; for non-negative numbers below 2^15.
PYEXT_HOST_DEVICE int32_t rounded_stochastically(float x, uint16_t random) {
  return (static_cast<int32_t>(x * 65536) + random) >> 16;
}

// The fourth root, to 5e-5 of it, a hundredth of the distance of codes: two exact square roots take
// most of the time of an encoding. The bits of x give x^(-1/4) but for a factor near 1, of which a
// parabola gives the rest. 0 of 0.
PYEXT_HOST_DEVICE float about_fourth_root(float x) {
  const float estimate = float_of(0x4f500000 - (bits_of(x) >> 2));
  const float square = estimate * estimate, rest = x * (square * square);  // 0.75 to 0.95
  const float factor =
      multiply_add(rest, multiply_add(rest, 0.22755412f, -0.69464723f), 1.46750483f);
  const float inverse = estimate * factor;
  return x * (inverse * inverse * inverse);
}

// 1 / scale; 0 where that would not be finite, or the scale is 0: the codes are 0 then.
PYEXT_HOST_DEVICE float inverse_scale(float scale) {
  const float inverse = 1 / scale;
  return scale > 1e-37f ? inverse : 0.0f;
}

// A NaN becomes 0: the scale of its block is NaN and tells. `inverse` is that of the scale.
PYEXT_HOST_DEVICE int8_t first_moment_code(float value, float inverse, uint16_t random) {
  const int32_t root = rounded_stochastically(127 * square_root(absolute(value) * inverse), random);
  const int32_t code = root > 127 ? 127 : root;
  return static_cast<int8_t>(value < 0 ? -code : code);
}

// A second moment above 0 never becomes 0: the step divides by its root.
PYEXT_HOST_DEVICE uint8_t second_moment_code(float value, float inverse, uint16_t random) {
  const float root = 255 * about_fourth_root(value * inverse);
  const int32_t code = rounded_stochastically(value > 0 && root < 1 ? 1 : root, random);
  return static_cast<uint8_t>(code > 255 ? 255 : code);
}

}  // namespace pyext
