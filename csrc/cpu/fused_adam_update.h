// The formula over a block, a vector at a time, with gradient and moments as they are stored.
#pragma once

#include "cpu/fused_adam_block.h"
#include "cpu/fused_adam_moments.h"
#include "fused_adam.h"

namespace pyext {
namespace {

// The memory of the next block, fetched while one is computed: its operands are met in bursts that
// are too short for the hardware to see where they lead.
class NextBlock {
 public:
  // In steps of `values`.
  NextBlock(const AdamTensor& t, int64_t begin, int64_t values) {
    for (int k = 0; k < kCount; ++k) {
      const auto& operand = t.operands[AdamTensor::kParam + k];
      const auto width = static_cast<int64_t>(c10::elementSize(operand.dtype));
      at_[k] = static_cast<const char*>(operand.data) + (begin + kAdamBlock) * width;
      step_[k] = values * width;
    }
  }
  [[gnu::always_inline]] void fetch() {
    for (int k = 0; k < kCount; ++k) {
      __builtin_prefetch(at_[k]);
      at_[k] += step_[k];
    }
  }

 private:
  static constexpr int kCount = 4;  // parameter, gradient and both moments
  static_assert(AdamTensor::kExpAvgSq == AdamTensor::kParam + kCount - 1);
  const char* at_[kCount];
  int64_t step_[kCount];
};

// The formula over a block, whose gradient may be of 16 bits; Moments is a class of
// fused_adam_moments.h. With `updates` it says what it subtracted.
template <typename acc_t, typename grad_t, typename Moments>
void update_block(AdamCoefficients<acc_t> c, int64_t n, acc_t* param, const grad_t* grad,
                  Moments& given, acc_t* updates, NextBlock next) {
  using Vec = at::vec::Vectorized<acc_t>;
  Moments moments = given;  // to which no pointer leads: it stays in registers
  const auto update = [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
    AdamElement<Vec> x{load_lanes<acc_t>(param + i, lanes), moments.load(0, i, lanes),
                       moments.load(1, i, lanes), Vec(0)};
    if (c.amsgrad) x.max_exp_avg_sq = moments.load(2, i, lanes);
    const Vec u = adam_update(c, load_lanes<acc_t>(grad + i, lanes), x);
    store_lanes(param + i, lanes, x.param);
    moments.store(0, i, lanes, x.exp_avg);
    moments.store(1, i, lanes, x.exp_avg_sq);
    if (c.amsgrad) moments.store(2, i, lanes, x.max_exp_avg_sq);
    if (updates != nullptr) store_lanes(updates + i, lanes, u);
  };
  const auto update_all = [&]() __attribute__((always_inline)) {
    int64_t i = 0;
    for (; i + Vec::size() <= n; i += Vec::size()) {
      update(i, Vec::size());
      next.fetch();
    }
    if (i < n) update(i, n - i);
    given = moments;
  };
  // What a step seldom has costs the loop a fifth of its time, unless it is known not to be there.
  const bool is_plain = !(c.has_l2 || c.near_gradient || c.amsgrad || c.small_eps);
  if (!is_plain || updates != nullptr) return update_all();
  c.has_l2 = c.near_gradient = c.amsgrad = c.small_eps = false;
  updates = nullptr;
  update_all();
}

}  // namespace
}  // namespace pyext
