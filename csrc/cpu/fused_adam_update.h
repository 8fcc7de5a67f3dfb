// The formula over a block, a vector at a time, with gradient and moments as they are stored.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/fused_adam_block.h"
#include "fused_adam.h"

namespace pyext {
namespace {

// The memory of the next block, fetched while one is computed: its operands are met in bursts that
// are too short for the hardware to see where they lead.
class NextBlock {
 public:
  NextBlock(const AdamTensor& t, int64_t begin) {
    for (int k = 0; k < kCount; ++k) {
      const auto& operand = t.operands[AdamTensor::kParam + k];
      width_[k] = static_cast<int64_t>(c10::elementSize(operand.dtype));
      at_[k] = static_cast<const char*>(operand.data) + (begin + kAdamBlock) * width_[k];
    }
  }
  void fetch(int64_t i) const {
    for (int k = 0; k < kCount; ++k) __builtin_prefetch(at_[k] + i * width_[k]);
  }

 private:
  static constexpr int kCount = 4;  // parameter, gradient and both moments
  static_assert(AdamTensor::kExpAvgSq == AdamTensor::kParam + kCount - 1);
  const char* at_[kCount];
  int64_t width_[kCount];
};

// The moments of a block as update_block works on them.
template <typename moment_t>
struct BlockMoments {
  moment_t* values[3];             // m, v, the largest v
  const Dither* dither = nullptr;  // if not null, one for each: moments of 16 bits round by it
  int64_t first = 0;               // of the block, for the dither
};

// bfloat16_stochastic of low_precision.h for a vector whose thresholds begin with element `first`:
// over lanes, GCC makes no vectors of the loop.
inline void store_dithered(at::BFloat16* to, const at::vec::Vectorized<float>& x,
                           const Dither& dither, int64_t first) {
  using Vec = at::vec::Vectorized<float>;
  typedef uint32_t Wide __attribute__((vector_size(sizeof(Vec))));
  typedef uint16_t Narrow __attribute__((vector_size(sizeof(Vec) / 2)));
  Wide bits, strides;
  for (uint32_t l = 0; l < Vec::size(); ++l) strides[l] = l * Dither::kStride;
  std::memcpy(&bits, &x, sizeof(Vec));
  const Wide thresholds = (strides + dither[first]) & 0xffff;
  add_low_bits(bits, thresholds);
  const Narrow upper = __builtin_convertvector(bits >> 16, Narrow);
  std::memcpy(to, &upper, sizeof(upper));
}

// The formula over a block, whose gradient and moments may be of 16 bits. With `updates` it says
// what it subtracted.
template <typename acc_t, typename grad_t, typename moment_t>
void update_block(const AdamCoefficients<acc_t>& c, int64_t n, acc_t* param, const grad_t* grad,
                  const BlockMoments<moment_t>& moments, acc_t* updates, const NextBlock& next) {
  using Vec = at::vec::Vectorized<acc_t>;
  const auto update = [&](int64_t i, int64_t lanes) {
    acc_t some[Vec::size()] = {};
    const auto load = [&](const auto* from) {
      if (lanes == Vec::size()) return load_vector<acc_t>(from + i);
      load_run(some, from + i, /*stride=*/1, lanes);
      return Vec::loadu(some);
    };
    const auto store = [&](auto* to, const Vec& values) {
      if (lanes == Vec::size()) return store_vector(to + i, values);
      values.store(some);
      at::vec::convert(some, to + i, lanes);
    };
    const auto store_moment = [&](int which, const Vec& values) {
      moment_t* const to = moments.values[which];
      if constexpr (std::is_same_v<moment_t, at::BFloat16>) {
        if (moments.dither != nullptr) {
          const Dither& dither = moments.dither[which];
          if (lanes == Vec::size())
            return store_dithered(to + i, values, dither, moments.first + i);
          at::BFloat16 rounded[Vec::size()];
          store_dithered(rounded, values, dither, moments.first + i);
          std::copy_n(rounded, lanes, to + i);
          return;
        }
      }
      store(to, values);
    };
    AdamElement<Vec> x{load(param), load(moments.values[0]), load(moments.values[1]), Vec(0)};
    if (c.amsgrad) x.max_exp_avg_sq = load(moments.values[2]);
    const Vec u = adam_update(c, load(grad), x);
    store(param, x.param);
    store_moment(0, x.exp_avg);
    store_moment(1, x.exp_avg_sq);
    if (c.amsgrad) store_moment(2, x.max_exp_avg_sq);
    if (updates != nullptr) store(updates, u);
    next.fetch(i);
  };
  int64_t i = 0;
  for (; i + Vec::size() <= n; i += Vec::size()) update(i, Vec::size());
  if (i < n) update(i, n - i);
}

}  // namespace
}  // namespace pyext
