// Label-smoothing cross-entropy: one kernel for every convention of smoothing.
//
// With lse = log sum_c exp z_c over the classes of a row, a target class y and masses t_c,
//
//     loss  =  T lse - sum_c t_c z_c,        T = sum_c t_c,
//     d loss / d z_c  =  T softmax(z)_c - t_c.
//
// The masses are  t_c = peak [c = y] w_y + off u_c:  `off` everywhere, `peak` = on - off more at
// the target (Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision").
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "math.h"

namespace pyext {

// How the mass that smoothing takes from the target is spread.
enum class Smoothing : int {
  kUniform,  // over all classes, the target included: torch, timm, Szegedy et al.
  kOthers,   // over the C - 1 other classes
  kLsr,      // as kOthers, and the target keeps its own share: the masses sum to 1 + off
  kPrior,    // in proportion to a prior over the classes
};

template <typename T>
struct Masses {
  T peak;  // on - off
  T off;
};

// T may be a scalar or an at::Tensor of one value per row. `classes` counts those that share.
template <typename T, typename Count>
PYEXT_HOST_DEVICE Masses<T> masses(Smoothing smoothing, const T& eps, const Count& classes) {
  switch (smoothing) {
    case Smoothing::kOthers: {
      const T off = eps / (classes - 1);
      return {1 - eps - off, off};
    }
    case Smoothing::kLsr:
      return {1 - eps, eps / (classes - 1)};
    default:
      return {1 - eps, eps / classes};
  }
}

// The masses of one row, weights and the scale of the reduction included.
template <typename T>
struct RowMasses {
  T pick_a;    // at the target (0: the row is ignored, or the target is given as probabilities)
  T pick_b;    // at the second target of mixup
  T off;       // times u_c, everywhere
  T dense;     // times w_c q_c, where the target is given as probabilities q
  T presence;  // how much this row counts: weighs the z-loss
};

// What one pass over the logits of a row gives. Sums are taken of z - maximum, so that a large
// common offset of the logits costs no digits.
template <typename T>
struct RowSums {
  T maximum;
  T log_sum;    // log sum_c exp(z_c - maximum)
  T u_sum;      // sum_c u_c
  T u_dot;      // sum_c u_c (z_c - maximum)
  T dense_sum;  // sum_c w_c q_c
  T dense_dot;  // sum_c w_c q_c (z_c - maximum)
  T z_a;        // z - maximum at the target
  T z_b;        // z - maximum at the second target
};

// A mass of 0 takes nothing, also from an infinite logit.
template <typename T>
PYEXT_HOST_DEVICE T taken(T mass, T value) {
  return where(mass == T(0), T(0), mass * value);
}

template <typename T>
PYEXT_HOST_DEVICE T total_mass(const RowMasses<T>& mass, T u_sum, T dense_sum) {
  return mass.pick_a + mass.pick_b + mass.off * u_sum + taken(mass.dense, dense_sum);
}

template <typename T>
PYEXT_HOST_DEVICE T row_loss(const RowMasses<T>& mass, const RowSums<T>& sums, T z_loss) {
  const T total = total_mass(mass, sums.u_sum, sums.dense_sum);
  const T expected = taken(mass.pick_a, sums.z_a) + taken(mass.pick_b, sums.z_b) +
                     taken(mass.off, sums.u_dot) + taken(mass.dense, sums.dense_dot);
  const T lse = sums.maximum + sums.log_sum;
  return taken(total, sums.log_sum) - expected + taken(mass.presence * z_loss, lse * lse);
}

// The coefficient of softmax(z)_c in the gradient of row_loss.
template <typename T>
PYEXT_HOST_DEVICE T softmax_coefficient(T total, T presence, T z_loss, T lse) {
  return total + taken(2 * presence * z_loss, lse);
}

// z = cap tanh(scale x / cap), or scale x without a cap (cap = 0); and dz/dx from z.
template <typename T>
PYEXT_HOST_DEVICE T transformed_logit(T x, T scale, T cap, bool capped) {
  return capped ? cap * hyperbolic_tangent(x * scale / cap) : x * scale;
}
template <typename T>
PYEXT_HOST_DEVICE T transformed_logit_derivative(T z, T scale, T cap, bool capped) {
  if (!capped) return scale;
  const T ratio = z / cap;
  return scale * (T(1) - ratio * ratio);
}

// ---- the op, for C++ callers ---------------------------------------------------------------

// The arguments of torch.nn.functional.cross_entropy and what pyext adds; see pyext.cross_entropy.
struct CrossEntropyOptions {
  std::optional<at::Tensor> weight;  // (C)
  int64_t ignore_index = -100;
  std::string reduction = "mean";
  double label_smoothing = 0.0;
  std::string smoothing = "uniform";
  std::optional<at::Tensor> row_smoothing;  // one epsilon per row, instead of label_smoothing
  std::optional<at::Tensor> prior;          // (C), when smoothing is "prior"
  std::optional<at::Tensor> target_b;       // second target of mixup
  double lam = 1.0;                         // weight of the first one
  std::optional<at::Tensor> row_lam;        // one lam per row, instead of lam
  double z_loss = 0.0;
  double logit_scale = 1.0;
  std::optional<double> softcap;
  bool masked = false;
  bool validate = false;
  bool return_stats = false;
  std::optional<at::ScalarType> out_dtype;

  static constexpr size_t kCount = 17;
  static CrossEntropyOptions from(const torch::jit::Stack& stack);  // its last kCount values
  void push_to(torch::jit::Stack& stack) const;
};

struct CrossEntropyOutputs {
  at::Tensor loss;
  at::Tensor normalizer;  // (rows..., 2): r and s with softmax(z) = exp(z - r) / s, for backward
  at::Tensor lse;         // per row; this and the next three are empty without return_stats
  at::Tensor entropy;     // per row
  at::Tensor target_log_prob;  // per row
  at::Tensor argmax;           // per row
};

CrossEntropyOutputs cross_entropy(const at::Tensor& input, const at::Tensor& target,
                                  const CrossEntropyOptions& options);

// The gradient in the logits, from those in the loss, the lse and the entropy (undefined: zero).
// `normalizer` and `entropy` are what the forward pass returned for these arguments.
at::Tensor cross_entropy_backward(const at::Tensor& grad_loss, const at::Tensor& grad_lse,
                                  const at::Tensor& grad_entropy, const at::Tensor& input,
                                  const at::Tensor& target, const at::Tensor& normalizer,
                                  const at::Tensor& entropy, const CrossEntropyOptions& options);

// ---- below the dispatcher ------------------------------------------------------------------

// The device entries themselves, for the Autograd key, which asks the forward pass for the gradient
// too (`gradient`, of sum or mean reductions) or gives the backward pass a buffer to write into.
CrossEntropyOutputs cross_entropy_forward_entry(const at::Tensor& input, const at::Tensor& target,
                                                const CrossEntropyOptions& options,
                                                at::Tensor* gradient);
at::Tensor cross_entropy_backward_entry(const at::Tensor& grad_loss, const at::Tensor& grad_lse,
                                        const at::Tensor& grad_entropy, const at::Tensor& input,
                                        const at::Tensor& target, const at::Tensor& normalizer,
                                        const at::Tensor& entropy,
                                        const CrossEntropyOptions& options, at::Tensor buffer);

// The scale of each target's rows: 1, or one over their summed weights for the mean. Made of ATen
// ops, so it can be traced; shape (2).
at::Tensor cross_entropy_scales(const at::Tensor& target, const CrossEntropyOptions& options,
                                const c10::SymInt& rows, const at::Tensor& weight,
                                at::ScalarType dtype);

Smoothing smoothing_from(const std::string& name);

}  // namespace pyext
