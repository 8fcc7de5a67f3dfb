// A block of one parameter on its way through the step: from memory of any dtype, strides and
// coding to values of the arithmetic type in the first cache, and back. Dense operands of the
// arithmetic type are worked on where they lie.
#pragma once

#include <algorithm>

#include "cpu/blocks.h"
#include "dither.h"
#include "fused_adam.h"

namespace pyext {
namespace {

constexpr int64_t kAdamBlock = 512;  // elements: whole runs of random bits, whole blocks of codes
static_assert(kAdamBlock % kRandomRun == 0 && kAdamBlock % kCodeBlock == 0);

// Calls f(position in the block, offset in memory, stride, count) for runs of evenly spaced
// elements.
template <typename F>
void each_run(const AdamOperand& operand, int64_t begin, int64_t n, const F& f) {
  const auto* s = operand.strided;
  if (s == nullptr || s->dims == 0) return f(int64_t{0}, begin, int64_t{1}, n);
  const int64_t inner = s->sizes[s->dims - 1];
  for (int64_t done = 0; done < n;) {
    const int64_t count = std::min(inner - (begin + done) % inner, n - done);
    f(done, s->offset(begin + done), s->strides[s->dims - 1], count);
    done += count;
  }
}

template <typename T>
bool lies_as(const AdamOperand& operand) {
  return operand.strided == nullptr && operand.dtype == c10::CppTypeToScalarType<T>::value;
}
template <typename T>
T* where_it_lies(const AdamOperand& operand, int64_t begin) {
  return static_cast<T*>(operand.data) + begin;
}

// The values of a block: where they lie, or in `scratch`.
template <typename acc_t>
acc_t* fetch(const AdamOperand& operand, int64_t begin, int64_t n, acc_t* scratch) {
  if (lies_as<acc_t>(operand)) return where_it_lies<acc_t>(operand, begin);
  each_run(operand, begin, n, [&](int64_t at, int64_t offset, int64_t stride, int64_t count) {
    load_run(scratch + at, operand.data, operand.dtype, offset, stride, count);
  });
  return scratch;
}

// Values go back, rounded to the nearest, unless they are there already.
template <typename acc_t>
void put(const AdamOperand& operand, int64_t begin, int64_t n, const acc_t* values) {
  if (lies_as<acc_t>(operand) && values == where_it_lies<acc_t>(operand, begin)) return;
  each_run(operand, begin, n, [&](int64_t at, int64_t offset, int64_t stride, int64_t count) {
    store_run(operand.data, operand.dtype, offset, stride, count, values + at);
  });
}

// The same for numbers that are no floats.
template <typename T>
void fetch_raw(const AdamOperand& operand, int64_t begin, int64_t n, T* to) {
  each_run(operand, begin, n, [&](int64_t at, int64_t offset, int64_t stride, int64_t count) {
    const T* from = static_cast<const T*>(operand.data) + offset;
    for (int64_t i = 0; i < count; ++i) to[at + i] = from[i * stride];
  });
}
template <typename T>
void put_raw(const AdamOperand& operand, int64_t begin, int64_t n, const T* from) {
  each_run(operand, begin, n, [&](int64_t at, int64_t offset, int64_t stride, int64_t count) {
    T* to = static_cast<T*>(operand.data) + offset;
    for (int64_t i = 0; i < count; ++i) to[i * stride] = from[at + i];
  });
}

// Numbers of 16 bits go back as they are formed: f(i) gives those of element i of the block.
template <typename F>
void put_bits(const AdamOperand& operand, int64_t begin, int64_t n, const F& f) {
  uint16_t scratch[kAdamBlock];
  const bool dense = operand.strided == nullptr;
  uint16_t* const to = dense ? static_cast<uint16_t*>(operand.data) + begin : scratch;
  for (int64_t i = 0; i < n; ++i) to[i] = f(i);
  if (!dense) put_raw(operand, begin, n, scratch);
}

// The values as storage of this dtype would give them back.
inline void round_to(at::ScalarType dtype, const float* values, int64_t n, float* rounded) {
  if (dtype == at::kBFloat16) {
    for (int64_t i = 0; i < n; ++i) {
      rounded[i] = float_of_bfloat16(bfloat16_nearest(values[i]));
    }
  } else {
    at::Half stored[kAdamBlock];
    at::vec::convert(values, stored, n);
    at::vec::convert(stored, rounded, n);
  }
}

// As random_bits of philox.h, for a block that begins with a run: draws side by side.
inline void fill_random(const RandomStream& stream, int64_t begin, int64_t n, uint16_t* bits) {
  for (int64_t run = 0; run * kRandomRun < n; ++run) {
    const uint64_t first = (begin / kRandomRun + run) * kRandomLanes;
    uint32_t word[4][kRandomLanes];
    for (int64_t lane = 0; lane < kRandomLanes; ++lane) {
      const Philox drawn = stream.draw(first + lane);
      for (int w = 0; w < 4; ++w) word[w][lane] = drawn.word[w];
    }
    uint16_t* const to = bits + run * kRandomRun;
    for (int64_t half = 0; half < 8; ++half) {
      for (int64_t lane = 0; lane < kRandomLanes; ++lane) {
        to[half * kRandomLanes + lane] =
            static_cast<uint16_t>(word[half / 2][lane] >> (half % 2 * 16));
      }
    }
  }
}

}  // namespace
}  // namespace pyext
