// Philox4x32-10, a random function of a counter and a key (Salmon et al. 2011, "Parallel Random
// Numbers: As Easy as 1, 2, 3"): the same bits for an element on any thread, in any order and on
// any device.
#pragma once

#include <cstdint>

#include "math.h"

namespace pyext {

struct Philox {
  uint32_t word[4];
};

PYEXT_HOST_DEVICE Philox philox(Philox counter, uint32_t key0, uint32_t key1) {
  uint32_t* const c = counter.word;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t high0 = static_cast<uint32_t>(product0 >> 32);
    const uint32_t high1 = static_cast<uint32_t>(product1 >> 32);
    const uint32_t first = high1 ^ c[1] ^ key0, third = high0 ^ c[3] ^ key1;
    c[1] = static_cast<uint32_t>(product1);
    c[3] = static_cast<uint32_t>(product0);
    c[0] = first;
    c[2] = third;
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

// Who draws: one stream of bits per seed, step and parameter.
struct RandomStream {
  uint64_t seed = 0;
  uint32_t step = 0;
  uint32_t parameter = 0;

  // Eight halves of 16 bits for eight elements; `index` counts the eights.
  PYEXT_HOST_DEVICE Philox draw(uint64_t index) const {
    const Philox counter{
        {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), step, parameter}};
    return philox(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  }
};

// The 16 random bits of one element. Runs of 128 elements share 16 draws: a draw serves elements
// that are 16 apart, so that draws side by side fill vectors of neighbouring elements.
constexpr int64_t kRandomRun = 128;
constexpr int64_t kRandomLanes = 16;

// The draw that serves an element, and the element's bits in it: for code that keeps draws at hand.
PYEXT_HOST_DEVICE int64_t draw_of(int64_t element) {
  return element / kRandomRun * kRandomLanes + element % kRandomLanes;
}
PYEXT_HOST_DEVICE uint16_t bits_in(const Philox& drawn, int64_t element) {
  const int64_t half = element / kRandomLanes % 8;
  return static_cast<uint16_t>(drawn.word[half / 2] >> (half % 2 * 16));
}

PYEXT_HOST_DEVICE uint16_t random_bits(const RandomStream& stream, int64_t element) {
  return bits_in(stream.draw(draw_of(element)), element);
}

}  // namespace pyext
