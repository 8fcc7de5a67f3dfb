// What the kernels of cross_entropy read and write.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "cross_entropy.h"
#include "kernel_stub.h"

namespace pyext {

// Where a row begins in each operand: rows are numbered over all axes but the class axis.
struct RowLayout {
  enum Operand { kInput, kProbabilities, kGradient, kOperands };
  static constexpr int kMaxDims = 8;

  int dims = 0;
  int64_t sizes[kMaxDims] = {};
  int64_t strides[kOperands][kMaxDims] = {};
  int64_t class_stride[kOperands] = {};

  PYEXT_HOST_DEVICE int64_t offset(Operand operand, int64_t row) const {
    int64_t result = 0;
    for (int d = dims - 1; d > 0; --d) {
      result += row % sizes[d] * strides[operand][d];
      row /= sizes[d];
    }
    return dims > 0 ? result + row * strides[operand][0] : 0;
  }
};

// What both kernels read. Arrays of `void` are of the arithmetic type: float, or double for double
// logits. Null pointers stand for ones (weights), for label_smoothing, for lam.
struct CrossEntropyProblem {
  int64_t rows = 0;
  int64_t classes = 0;
  RowLayout layout;
  at::ScalarType dtype = at::kFloat;
  at::ScalarType probabilities_dtype = at::kFloat;
  const void* input = nullptr;
  const int64_t* target = nullptr;    // one per row, or null: probabilities
  const int64_t* target_b = nullptr;  // mixup only
  const void* probabilities = nullptr;
  const void* weight = nullptr;          // w, (C)
  const void* prior = nullptr;           // (C)
  const void* class_mass = nullptr;      // u, (C): weight times prior
  const void* row_smoothing = nullptr;   // (rows)
  const void* row_lam = nullptr;         // (rows)
  const void* scales = nullptr;          // (2)
  const void* class_mass_sum = nullptr;  // sum_c u_c, (1); null where u is all ones
  double label_smoothing = 0.0;
  double lam = 1.0;
  double z_loss = 0.0;
  double logit_scale = 1.0;
  double softcap = 0.0;
  Smoothing smoothing = Smoothing::kUniform;
  int64_t ignore_index = -100;
  bool masked = false;
  bool capped = false;
};

// Either pointer group may be null. Everything is per row, but for the gradient.
struct CrossEntropyResults {
  void* loss = nullptr;
  void* normalizer = nullptr;  // two per row: r and s
  void* lse = nullptr;         // this and the next three only with statistics
  void* entropy = nullptr;
  void* target_log_prob = nullptr;
  int64_t* argmax = nullptr;
  void* gradient = nullptr;
};

struct CrossEntropyCotangents {
  const void* loss = nullptr;
  int64_t loss_stride = 0;  // 0: one value for all rows
  const void* lse = nullptr;
  const void* entropy = nullptr;
  const void* saved_normalizer = nullptr;
  const void* saved_entropy = nullptr;
};

// What smoothing makes of row `row`. `shared` is the number of classes that share it (all, unless
// masked) or, for a prior, the sum of their prior.
template <typename T>
PYEXT_HOST_DEVICE Masses<T> smoothing_masses(const CrossEntropyProblem& p, int64_t row, T shared) {
  const T eps = p.row_smoothing ? static_cast<const T*>(p.row_smoothing)[row]
                                : static_cast<T>(p.label_smoothing);
  const Masses<T> mass = masses(p.smoothing, eps, shared);
  return {mass.peak, eps == T(0) ? T(0) : mass.off};
}

// The masses of row `row`. An index out of range is not read with (CUDA).
template <typename T>
PYEXT_HOST_DEVICE RowMasses<T> row_masses(const CrossEntropyProblem& p, int64_t row,
                                          const Masses<T>& mass) {
  const T* weight = static_cast<const T*>(p.weight);
  const T* scales = static_cast<const T*>(p.scales);
  if (p.target == nullptr) {
    return {T(0), T(0), mass.off * scales[0], mass.peak * scales[0], scales[0]};
  }
  T presence = T(0);
  const auto pick = [&](const int64_t* target, T share) {
    const int64_t y = target[row];
    if (y == p.ignore_index || y < 0 || y >= p.classes) return T(0);
    presence += share;
    return share * mass.peak * (weight ? weight[y] : T(1));
  };
  if (p.target_b == nullptr) {
    const T picked = pick(p.target, scales[0]);
    return {picked, T(0), mass.off * presence, T(0), presence};
  }
  const T lam = p.row_lam ? static_cast<const T*>(p.row_lam)[row] : static_cast<T>(p.lam);
  const T a = pick(p.target, lam * scales[0]), b = pick(p.target_b, (T(1) - lam) * scales[1]);
  return {a, b, mass.off * presence, T(0), presence};
}

template <typename T>
PYEXT_HOST_DEVICE RowMasses<T> row_masses(const CrossEntropyProblem& p, int64_t row, T shared) {
  return row_masses(p, row, smoothing_masses(p, row, shared));
}

extern KernelStub<void(const CrossEntropyProblem&, const CrossEntropyResults&)> cross_entropy_stub;
extern KernelStub<void(const CrossEntropyProblem&, const CrossEntropyCotangents&, void*)>
    cross_entropy_backward_stub;

// On a GPU alone, where each ATen op would be a launch. The scales of a mean over class indices, as
// cross_entropy_scales makes them; and the sum of the losses of the rows, NaN where a scale is not
// finite, as one value of `out_dtype`.
extern KernelStub<void(const CrossEntropyProblem&, void* scales)> cross_entropy_scales_stub;
extern KernelStub<void(const CrossEntropyProblem&, const void* loss_rows, void* out,
                       at::ScalarType out_dtype)>
    cross_entropy_total_stub;

}  // namespace pyext
