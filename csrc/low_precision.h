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

// Moments in 8 bits, in blocks that share a scale, the largest magnitude of the block: it has a
// code of its own, or the scale, and with it all of the block, would be rounded anew with every
// step. Codes stand for powers of evenly spaced numbers, so that small values keep digits: squares
// for the first moment, fourth powers (squares of a root that is itself a square) for the second.
constexpr int64_t kCodeBlock = 256;

// What codes stand for; `unit` is formed of the scale. V: float or a vector of them.
PYEXT_HOST_DEVICE float first_moment_unit(float scale) { return scale * (1.0f / (127 * 127)); }
PYEXT_HOST_DEVICE float second_moment_unit(float scale) {
  return square_root(scale) * (1.0f / (255 * 255));
}
template <typename V>
PYEXT_HOST_DEVICE V first_moment_of(const V& code, const V& unit) {
  return code * absolute(code) * unit;
}
template <typename V>
PYEXT_HOST_DEVICE V second_moment_of(const V& code, const V& unit) {
  const V root = code * code * unit;
  return root * root;
}

// What a value is first multiplied by; 0 where that would not be finite, or the scale is 0: the
// codes are 0 then.
PYEXT_HOST_DEVICE float first_moment_factor(float scale) {
  constexpr float kMost = 127 * 65536;
  return scale > 1e-24f ? kMost * kMost / scale : 0.0f;
}
PYEXT_HOST_DEVICE float second_moment_factor(float scale) {
  return scale > 1e-37f ? 1 / scale : 0.0f;
}

// 2^16 times the place of a value among the codes. An error is met again in every step, so it has
// to be far smaller than what a step changes: it is a 10,000th of the place.
template <typename V>
PYEXT_HOST_DEVICE V first_moment_root(const V& value, const V& factor) {
  const V x = value * factor, root = x * about_inverse_root(at_least(absolute(x), V(1e-30f)));
  return at_most(at_least(root, V(-127 * 65536)), V(127 * 65536));
}
template <typename V>
PYEXT_HOST_DEVICE V second_moment_root(const V& value, const V& factor) {
  const V x = at_least(value * factor, V(1e-30f));
  const V root = V(255 * 65536) * about_inverse_root(about_inverse_root(x));
  return at_most(root, V(255 * 65536));
}

// Codes of roots, rounded up or down by a threshold of 16 bits. A NaN becomes 0 or 1: the scale of
// its block is NaN and tells. Ints: int32_t or a vector of them.
template <typename Ints>
PYEXT_HOST_DEVICE Ints first_moment_code(const Ints& root, const Ints& threshold) {
  return (root + threshold) >> 16;
}

// A second moment above 0 never becomes 0: the step divides by its root. `bits` are the moment's.
template <typename Ints>
PYEXT_HOST_DEVICE Ints second_moment_code(const Ints& root, const Ints& threshold,
                                          const Ints& bits) {
  const Ints code = (root + threshold) >> 16, one = Ints{} + 1;
  const Ints least = bits < one ? bits : one;
  return code > least ? code : least;
}

}  // namespace pyext
