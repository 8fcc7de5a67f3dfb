// What one row of logits comes to: from its sums to its loss, and the gradient of one logit.
//
// Host and device; nothing here knows how rows are laid over threads.
#pragma once

#include <cstdint>
#include <limits>

#include "cross_entropy_problem.h"

namespace pyext {
namespace {

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// The classes that a row's targets name; kNone where a target is absent or ignored.
struct RowTargets {
  static constexpr int64_t kNone = -1;

  int64_t a = kNone;
  int64_t b = kNone;
  bool ignored = false;       // the row does not count at all
  bool out_of_range = false;  // some index is neither a class nor ignore_index
};

PYEXT_HOST_DEVICE RowTargets row_targets(const CrossEntropyProblem& p, int64_t row) {
  RowTargets result;
  if (p.target == nullptr) return result;
  const auto class_of = [&](const int64_t* target) {
    const int64_t y = target[row];
    if (y == p.ignore_index) return RowTargets::kNone;
    const bool fits = y >= 0 && y < p.classes;
    result.out_of_range = result.out_of_range || !fits;
    return fits ? y : RowTargets::kNone;
  };
  result.a = class_of(p.target);
  if (p.target_b != nullptr) result.b = class_of(p.target_b);
  result.ignored =
      result.a == RowTargets::kNone && result.b == RowTargets::kNone && !result.out_of_range;
  return result;
}

// What row_masses divides the smoothing by: the classes, or the sum of their prior.
template <typename T>
PYEXT_HOST_DEVICE T sharing_classes(const CrossEntropyProblem& p, T shared_of_masked_row) {
  if (p.masked) return shared_of_masked_row;
  return p.prior != nullptr ? T(1) : static_cast<T>(p.classes);
}

template <typename T>
PYEXT_HOST_DEVICE T class_mass_sum(const CrossEntropyProblem& p, T u_sum_of_masked_row) {
  if (p.masked) return u_sum_of_masked_row;
  return p.class_mass_sum != nullptr ? *static_cast<const T*>(p.class_mass_sum)
                                     : static_cast<T>(p.classes);
}

// Log-probability of the targets, or its expectation over two targets or class probabilities.
template <typename T>
PYEXT_HOST_DEVICE T target_log_prob(const CrossEntropyProblem& p, int64_t row,
                                    const RowTargets& targets, const RowSums<T>& sums) {
  if (targets.out_of_range) return std::numeric_limits<T>::quiet_NaN();
  if (p.target == nullptr) return sums.dense_dot - taken(sums.dense_sum, sums.log_sum);
  const auto log_prob = [&](int64_t y, T z) {
    return y == RowTargets::kNone ? T(0) : z - sums.log_sum;
  };
  if (p.target_b == nullptr) return log_prob(targets.a, sums.z_a);
  const T lam = p.row_lam ? static_cast<const T*>(p.row_lam)[row] : static_cast<T>(p.lam);
  return taken(lam, log_prob(targets.a, sums.z_a)) +
         taken(T(1) - lam, log_prob(targets.b, sums.z_b));
}

// Writes what a row comes to, from the sums over its classes and the logits at its targets.
template <bool kMayHaveStatistics, typename T, typename Sums>
PYEXT_HOST_DEVICE void write_row(const CrossEntropyProblem& p, const CrossEntropyResults& out,
                                 int64_t row, const Sums& s, T z_a, T z_b) {
  const auto write = [row](void* to, T value) { static_cast<T*>(to)[row] = value; };
  const auto write_normalizer = [&](T shift, T sum) {
    static_cast<T*>(out.normalizer)[2 * row] = shift;
    static_cast<T*>(out.normalizer)[2 * row + 1] = sum;
  };
  const RowTargets targets = row_targets(p, row);
  if (targets.ignored && !(kMayHaveStatistics && out.entropy != nullptr)) {
    write(out.loss, T(0));
    write_normalizer(T(0), T(1));
    return;
  }
  const T shift = s.shift();
  const RowSums<T> sums{shift,       logarithm(s.sum), class_mass_sum(p, s.u_sum),
                        s.u_dot,     s.dense_sum,      s.dense_dot,
                        z_a - shift, z_b - shift};
  const RowMasses<T> mass = row_masses(p, row, sharing_classes(p, s.shared));
  const T loss = row_loss(mass, sums, static_cast<T>(p.z_loss));
  write(out.loss, targets.out_of_range ? std::numeric_limits<T>::quiet_NaN() : loss);
  write_normalizer(shift, s.sum);
  if constexpr (kMayHaveStatistics) {
    if (out.entropy == nullptr) return;
    write(out.lse, shift + sums.log_sum);
    write(out.entropy, sums.log_sum - s.z_dot / s.sum);
    write(out.target_log_prob, target_log_prob(p, row, targets, sums));
    out.argmax[row] = s.argmax;
  }
}

// What the gradient of a row is made of: with e = exp(z - shift) and p = e / sum = softmax(z),
//
//     factor e - off u - dense w q - entropy p (log p + H), less `pick` at each target.
template <typename T>
struct GradientTerms {
  T shift;
  T sum;
  T factor;  // of the loss and of the lse
  T off;
  T dense;
  T entropy;  // cotangent of the entropy H
  T entropy_value;
  T pick_a;
  T pick_b;
};

template <typename T>
PYEXT_HOST_DEVICE GradientTerms<T> gradient_terms(const CrossEntropyProblem& p,
                                                  const CrossEntropyCotangents& in, int64_t row,
                                                  const RowTargets& targets, T shared, T u_sum,
                                                  T dense_sum) {
  const auto read = [](const void* values, int64_t i) {
    return values != nullptr ? static_cast<const T*>(values)[i] : T(0);
  };
  const T shift = read(in.saved_normalizer, 2 * row);
  const T sum = read(in.saved_normalizer, 2 * row + 1);
  const T g = read(in.loss, row * in.loss_stride);
  const RowMasses<T> mass = row_masses(p, row, sharing_classes(p, shared));
  const T total = total_mass(mass, class_mass_sum(p, u_sum), dense_sum);
  const T of_loss =
      softmax_coefficient(total, mass.presence, static_cast<T>(p.z_loss), shift + logarithm(sum));
  const T factor = (g * of_loss + read(in.lse, row)) / sum;
  return {shift,
          sum,
          targets.out_of_range ? std::numeric_limits<T>::quiet_NaN() : factor,
          g * mass.off,
          g * mass.dense,
          read(in.entropy, row),
          read(in.saved_entropy, row),
          g * mass.pick_a,
          g * mass.pick_b};
}

// The gradient in z of one class, all but the picks. `wq` is its weight times its probability.
template <typename T>
PYEXT_HOST_DEVICE T class_gradient(const GradientTerms<T>& t, T z, T u, T wq, bool masked) {
  const T log_e = z - t.shift;
  const T e = exponential(log_e);
  T d = t.factor * e - where(masked && z == -kInfinity<T>, T(0), t.off * u) - t.dense * wq;
  if (t.entropy != T(0)) {
    const T p = e / t.sum;
    d -= t.entropy * taken(p, log_e - logarithm(t.sum) + t.entropy_value);
  }
  return d;
}

}  // namespace
}  // namespace pyext
