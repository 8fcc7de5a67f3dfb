// Thresholds for rounding up or down that are evenly spread over steps and over elements (Weyl
// 1916): over the steps an element is rounded up as often as its fraction says, more evenly than by
// chance, at the price of an addition where Philox takes a hundred instructions. Moments are
// averages of many steps, so this is all they ask of chance.
#pragma once

#include <cstdint>

#include "math.h"

namespace pyext {

struct Dither {
  uint32_t start;

  // One sequence per seed, parameter and moment; 40503 / 2^16 is the golden ratio.
  PYEXT_HOST_DEVICE Dither(uint64_t seed, uint32_t step, uint32_t parameter, uint32_t moment)
      : start(static_cast<uint32_t>(seed) + (parameter * 3 + moment) * 0x9E3779B1u +
              step * 40503u) {}

  // 27145 / 2^16 is the fraction of the root of 2.
  static constexpr int32_t kStride = 27145;

  // 16 bits for an element.
  PYEXT_HOST_DEVICE uint16_t operator[](int64_t element) const {
    return static_cast<uint16_t>(start + static_cast<uint32_t>(element) * kStride);
  }
};

}  // namespace pyext
