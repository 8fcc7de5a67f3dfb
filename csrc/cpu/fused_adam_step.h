// The step of a block: parameter and states are fetched in full precision, updated, and put back as
// they are stored.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/fused_adam_block.h"
#include "cpu/fused_adam_update.h"
#include "fused_adam.h"

namespace pyext {
namespace {

// One thread's way through the blocks of tensors with one arithmetic type.
template <typename acc_t>
class AdamStep {
  static constexpr bool is_float = std::is_same_v<acc_t, float>;
  using T = AdamTensor;

 public:
  AdamStep(const AdamProblem& problem, bool telemetry) : p_(problem), telemetry_(telemetry) {}

  void run(const AdamTensor& t, int64_t first, int64_t count, AdamTelemetry* sums) {
    const auto coefficients = cast(p_.groups[t.group].coefficients);
    for (int64_t begin = first; begin < first + count; begin += kAdamBlock) {
      block(t, coefficients, begin, std::min(kAdamBlock, first + count - begin), sums);
    }
  }

 private:
  static AdamCoefficients<acc_t> cast(const AdamCoefficients<double>& c) {
    const auto to = [](double x) { return static_cast<acc_t>(x); };
    return {to(c.grad_factor), to(c.l2),        to(c.decay),     to(c.weight1),     to(c.beta1),
            to(c.beta2),       to(c.weight2),   to(c.step_size), to(c.root_factor), to(c.eps),
            c.has_l2,          c.near_gradient, c.amsgrad,       c.small_eps};
  }

  void block(const AdamTensor& t, const AdamCoefficients<acc_t>& c, int64_t begin, int64_t n,
             AdamTelemetry* sums) {
    const auto& operands = t.operands;
    acc_t* const param = fetch_param(t, begin, n);
    if (telemetry_) std::copy_n(param, n, old_);
    with_grad(t, begin, n, [&](const auto* grad) {
      with_moments(t, begin, n, [&](auto& moments, int64_t from, int64_t count) {
        update_block(c, count, param + from, grad + from, moments,
                     telemetry_ ? updates_ + from : nullptr,
                     NextBlock(t, begin + from, at::vec::Vectorized<acc_t>::size()));
      });
    });
    put_param(t, begin, n, param);
    if (operands[T::kEma].data != nullptr) average(t, begin, n, param);
    if (telemetry_) add_up(c, n, param, fetch(operands[T::kGrad], begin, n, grad_), sums);
    if (p_.zero_grad) {
      std::fill_n(grad_, n, acc_t(0));
      put(operands[T::kGrad], begin, n, grad_);
    }
  }

  // Calls f(gradient), as it lies if vectors can be loaded from there.
  template <typename F>
  void with_grad(const AdamTensor& t, int64_t begin, int64_t n, const F& f) {
    const auto& grad = t.operands[T::kGrad];
    if constexpr (is_float) {
      if (lies_as<at::BFloat16>(grad)) return f(where_it_lies<at::BFloat16>(grad, begin));
    }
    f(fetch(grad, begin, n, grad_));
  }

  // Calls f(moments, element, elements), likewise, for the block or its parts.
  template <typename F>
  void with_moments(const AdamTensor& t, int64_t begin, int64_t n, const F& f) {
    const bool amsgrad = p_.groups[t.group].coefficients.amsgrad;
    const auto operands = c10::ArrayRef(t.operands).slice(T::kExpAvg, amsgrad ? 3 : 2);
    const int count = static_cast<int>(operands.size());
    if constexpr (is_float) {
      using c10::BFloat16;
      const Dither dither[] = {dither_of(t, 0), dither_of(t, 1), dither_of(t, 2)};
      if (std::all_of(operands.begin(), operands.end(), lies_as<BFloat16>)) {
        PlainMoments<float, BFloat16> found;
        for (int k = 0; k < count; ++k) {
          found.values[k] = where_it_lies<BFloat16>(operands[k], begin);
        }
        if (!t.stochastic_moments) return f(found, 0, n);
        DitheredMoments dithered(found, dither, begin);
        return f(dithered, 0, n);
      }
      if (operands[0].dtype == at::kChar) {
        for (int64_t from = 0; from < n; from += kCodeBlock) {
          const int64_t part = std::min(kCodeBlock, n - from);
          CodedMoments coded(t, count, begin + from, {exp_avg_, exp_avg_sq_, max_exp_avg_sq_});
          f(coded, from, part);
          coded.encode(dither, begin + from, part);
        }
        return;
      }
    }
    PlainMoments<acc_t, acc_t> found{{exp_avg_, exp_avg_sq_, max_exp_avg_sq_}};
    for (int k = 0; k < count; ++k) {
      found.values[k] = fetch(operands[k], begin, n, found.values[k]);
    }
    f(found, 0, n);
    for (int k = 0; k < count; ++k) put_moment(t, k, begin, n, found.values[k]);
  }

  // The parameter in full precision.
  acc_t* fetch_param(const AdamTensor& t, int64_t begin, int64_t n) {
    const auto& param = t.operands[T::kParam];
    const auto& master = t.operands[T::kMaster];
    acc_t* const stored = fetch(param, begin, n, param_);
    if constexpr (is_float) {
      switch (t.master) {
        case AdamMaster::kFloat32: {
          float* const full = fetch(master, begin, n, master_);
          round_stored(param.dtype, full, n, rounded_);
          // Whoever wrote to the parameter since the last step is heard.
          for (int64_t i = 0; i < n; ++i) full[i] = rounded_[i] == stored[i] ? full[i] : stored[i];
          return full;
        }
        case AdamMaster::kSplit: {
          fetch_raw(master, begin, n, low_);
          for (int64_t i = 0; i < n; ++i) {
            stored[i] = float_of(bits_of(stored[i]) + static_cast<uint32_t>(int32_t{low_[i]}));
          }
          return stored;
        }
        case AdamMaster::kKahan: {
          const float* const lost = fetch(master, begin, n, master_);
          for (int64_t i = 0; i < n; ++i) stored[i] += lost[i];
          return stored;
        }
        default:
          break;
      }
    }
    return stored;
  }

  // Leaves in `full` what the next step will find.
  void put_param(const AdamTensor& t, int64_t begin, int64_t n, acc_t* full) {
    const auto& param = t.operands[T::kParam];
    const auto& master = t.operands[T::kMaster];
    if constexpr (is_float) {
      switch (t.master) {
        case AdamMaster::kFloat32:
          put(master, begin, n, full);
          if (param.dtype != at::kBFloat16) return put(param, begin, n, full);
          return put_bits(param, begin, n,
                          [&](int64_t i) { return bfloat16_nearest_away(full[i]); });
        case AdamMaster::kSplit:
          put_bits(param, begin, n, [&](int64_t i) { return split(full[i]).high; });
          return put_bits(master, begin, n,
                          [&](int64_t i) { return static_cast<uint16_t>(split(full[i]).low); });
        case AdamMaster::kKahan:
          round_to(param.dtype, full, n, rounded_);
          for (int64_t i = 0; i < n; ++i) master_[i] = full[i] - rounded_[i];
          round_to(param.dtype, master_, n, master_);
          for (int64_t i = 0; i < n; ++i) full[i] = rounded_[i] + master_[i];
          put(master, begin, n, master_);
          return put(param, begin, n, rounded_);
        case AdamMaster::kStochastic:
          fill_random({p_.seed, t.step, t.parameter}, begin, n, random_);
          put_bits(param, begin, n,
                   [&](int64_t i) { return bfloat16_stochastic(full[i], random_[i]); });
          if (telemetry_ || t.operands[T::kEma].data != nullptr) fetch(param, begin, n, full);
          return;
        case AdamMaster::kNone:
          if (param.dtype != at::kFloat && (telemetry_ || t.operands[T::kEma].data != nullptr)) {
            round_to(param.dtype, full, n, full);
          }
          break;
      }
    }
    put(param, begin, n, full);
  }

  // The rounding of a float32 copy: that of `split`, so that both give the same parameters.
  static void round_stored(at::ScalarType dtype, const float* full, int64_t n, float* rounded) {
    if (dtype != at::kBFloat16) return round_to(dtype, full, n, rounded);
    for (int64_t i = 0; i < n; ++i) rounded[i] = float_of_bfloat16(bfloat16_nearest_away(full[i]));
  }

  // `which` counts the moments.
  Dither dither_of(const AdamTensor& t, uint32_t which) const {
    return Dither(p_.seed, t.step, t.parameter, which);
  }

  void put_moment(const AdamTensor& t, uint32_t which, int64_t begin, int64_t n, acc_t* values) {
    const auto& moment = t.operands[T::kExpAvg + which];
    if constexpr (is_float) {
      if (t.stochastic_moments && moment.dtype == at::kBFloat16) {
        const Dither dither = dither_of(t, which);
        return put_bits(moment, begin, n, [&](int64_t i) {
          return bfloat16_stochastic(values[i], dither[begin + i]);
        });
      }
    }
    put(moment, begin, n, values);
  }

  void average(const AdamTensor& t, int64_t begin, int64_t n, const acc_t* param) {
    const auto& operand = t.operands[T::kEma];
    const acc_t weight = static_cast<acc_t>(t.ema_weight);
    acc_t* const ema = fetch(operand, begin, n, rounded_);
    for (int64_t i = 0; i < n; ++i) ema[i] += weight * (param[i] - ema[i]);
    put(operand, begin, n, ema);
  }

  void add_up(const AdamCoefficients<acc_t>& c, int64_t n, const acc_t* param, const acc_t* grad,
              AdamTelemetry* sums) {
    for (int64_t i = 0; i < n; ++i) {
      const double g = double{grad[i]} * c.grad_factor, u = updates_[i], x = param[i];
      sums->grad_square += g * g;
      sums->update_square += u * u;
      sums->param_square += x * x;
      sums->lost += updates_[i] != 0 && param[i] == old_[i];
    }
  }

  const AdamProblem& p_;
  const bool telemetry_;
  alignas(64) acc_t param_[kAdamBlock], grad_[kAdamBlock], exp_avg_[kAdamBlock],
      exp_avg_sq_[kAdamBlock], max_exp_avg_sq_[kAdamBlock], master_[kAdamBlock],
      rounded_[kAdamBlock], old_[kAdamBlock], updates_[kAdamBlock];
  alignas(64) uint16_t random_[kAdamBlock];
  alignas(64) int16_t low_[kAdamBlock];
};

}  // namespace
}  // namespace pyext
