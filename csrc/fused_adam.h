// The step of Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019), over any number of
// tensors at once. With gradient g, moments m and v, step t, and the corrections of both biases,
//
//     m <- m + (1 - beta1) (g - m)                  v <- beta2 v + (1 - beta2) g^2
//     p <- p - lr wd p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps),
//
// as torch.optim.Adam and AdamW compute it. L2 weight decay adds wd p to g instead of lr wd p to
// the step. amsgrad takes the largest v so far under the root. Moments that would be denormal are
// 0: where a gradient stays 0, m gets there within 1,000 steps and does not leave, at 20 times the
// cost.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "dither.h"
#include "kernel_stub.h"
#include "low_precision.h"
#include "math.h"
#include "philox.h"

namespace pyext {

// What the user sets; the same for all parameters of a group.
struct AdamOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  bool decoupled = false;  // weight decay of AdamW, not L2
  bool amsgrad = false;
  bool maximize = false;
  bool float32_lr = false;  // lr is a float32 tensor: torch forms what contains it in float32
};

// The numbers of one step, formed in double and rounded once. T: float or double.
template <typename T>
struct AdamCoefficients {
  T grad_factor;  // of the gradient: sign of the direction, loss scale, clipping
  T l2;           // of the parameter, added to the gradient
  T decay;        // of the parameter, added to the update
  T weight1;      // 1 - beta1
  T beta1;
  T beta2;
  T weight2;      // 1 - beta2
  T step_size;    // lr / (1 - beta1^t)
  T root_factor;  // 1 / sqrt(1 - beta2^t)
  T eps;
  bool has_l2;         // not to make NaN of 0 * inf
  bool near_gradient;  // 1 - beta1 >= 0.5: the form of the interpolation, as torch.lerp chooses
  bool amsgrad;
  bool small_eps;  // so small that the root of a denormal v counts beside it
};

// `grad_factor` without the sign of `maximize`.
template <typename T>
PYEXT_HOST_DEVICE AdamCoefficients<T> adam_coefficients(const AdamOptions& o, double lr,
                                                        double step, double grad_factor) {
  const bool l2 = !o.decoupled && o.weight_decay != 0;
  AdamCoefficients<T> c;
  c.grad_factor = static_cast<T>(o.maximize ? -grad_factor : grad_factor);
  c.l2 = static_cast<T>(l2 ? o.weight_decay : 0.0);
  const double correction1 = 1 - ::pow(o.beta1, step);
  double decay = lr * o.weight_decay, step_size = lr / correction1;
  if (o.float32_lr) {
    const float kept = 1 - static_cast<float>(lr) * static_cast<float>(o.weight_decay);
    decay = 1 - double{kept};
    step_size = static_cast<float>(lr) / static_cast<float>(correction1);
  }
  c.decay = static_cast<T>(o.decoupled ? decay : 0.0);
  c.weight1 = static_cast<T>(1 - o.beta1);
  c.beta1 = static_cast<T>(o.beta1);
  c.beta2 = static_cast<T>(o.beta2);
  c.weight2 = static_cast<T>(1 - o.beta2);
  c.step_size = static_cast<T>(step_size);
  c.root_factor = static_cast<T>(1 / ::sqrt(1 - ::pow(o.beta2, step)));
  c.eps = static_cast<T>(o.eps);
  c.has_l2 = l2;
  c.near_gradient = 1 - o.beta1 >= 0.5;
  c.amsgrad = o.amsgrad;
  c.small_eps = o.eps < 1e-10;
  return c;
}

// One element, or a vector of them.
template <typename T>
struct AdamElement {
  T param;
  T exp_avg;
  T exp_avg_sq;
  T max_exp_avg_sq;  // read and written with amsgrad only
};

// What gradients of this norm are multiplied by, as torch.nn.utils.clip_grad_norm_ has it; NaN
// stays.
PYEXT_HOST_DEVICE double clip_factor(double max_norm, double norm) {
  const double factor = max_norm / (norm + 1e-6);
  return factor > 1 ? 1 : factor;
}

// The formula: updates x, and returns what was subtracted from the parameter. V: T or
// Vectorized<T>; the coefficients are spread to it outside of loops.
template <typename V, typename T>
PYEXT_HOST_DEVICE V adam_update(const AdamCoefficients<T>& c, V grad, AdamElement<V>& x) {
  grad = grad * V(c.grad_factor);
  if (c.has_l2) grad = multiply_add(x.param, V(c.l2), grad);
  const V difference = grad - x.exp_avg;
  x.exp_avg =
      without_denormals(c.near_gradient ? multiply_add(difference, V(-c.beta1), grad)
                                        : multiply_add(difference, V(c.weight1), x.exp_avg));
  x.exp_avg_sq = multiply_add(grad * grad, V(c.weight2), x.exp_avg_sq * V(c.beta2));
  if (!c.small_eps) x.exp_avg_sq = without_denormals(x.exp_avg_sq);
  V under_root = x.exp_avg_sq;
  if (c.amsgrad) {
    x.max_exp_avg_sq = larger_or_nan(x.max_exp_avg_sq, x.exp_avg_sq);
    under_root = x.max_exp_avg_sq;
  }
  const V denominator = multiply_add(square_root(under_root), V(c.root_factor), V(c.eps));
  const V update = multiply_add(x.param, V(c.decay), V(c.step_size) * (x.exp_avg / denominator));
  x.param = x.param - update;
  return update;
}

// How a parameter of 16 bits keeps updates that are smaller than its own rounding.
enum class AdamMaster : int {
  kNone,
  kFloat32,     // a float32 copy leads, the parameter is its rounding
  kSplit,       // bfloat16 parameter and the 16 bits below it make a float32
  kKahan,       // what rounding lost is added to the next update (Kahan 1965)
  kStochastic,  // bfloat16, rounded up or down at random
};

// The memory of one operand of one parameter. Elements are counted in an order that all operands
// of the parameter share; `strided` says where they lie when that is not one after the other.
struct AdamOperand {
  static constexpr int kMaxDims = 12;
  struct Strides {
    int dims = 0;
    int64_t sizes[kMaxDims] = {};
    int64_t strides[kMaxDims] = {};

    PYEXT_HOST_DEVICE int64_t offset(int64_t element) const {
      int64_t result = 0;
      for (int d = dims - 1; d >= 0; --d) {
        result += element % sizes[d] * strides[d];
        element /= sizes[d];
      }
      return result;
    }
  };

  void* data = nullptr;
  at::ScalarType dtype = at::kFloat;
  const Strides* strided = nullptr;  // null: one after the other
};

// One parameter of a step.
struct AdamTensor {
  enum Operand {
    kParam,
    kGrad,
    kExpAvg,
    kExpAvgSq,
    kMaxExpAvgSq,  // with amsgrad
    kMaster,       // float32 copy, low bits (int16), or compensation (the dtype of the parameter)
    kEma,          // float32 (float64 for such parameters), or null
    kExpAvgScale,  // with moments of 8 bits: float32, one per block of kCodeBlock elements
    kExpAvgSqScale,
    kMaxExpAvgSqScale,
    kOperands
  };

  AdamOperand operands[kOperands];
  int64_t numel = 0;       // of real numbers: a complex one counts twice
  int32_t group = 0;       // index into AdamProblem::groups
  uint32_t parameter = 0;  // names its random bits
  uint32_t step = 0;       // likewise
  AdamMaster master = AdamMaster::kNone;
  bool stochastic_moments = false;     // bfloat16 moments are rounded at random, not to the nearest
  double ema_weight = 0;               // 1 - decay
  const float* device_step = nullptr;  // CUDA: t, counted on the device; else `coefficients` has it
};

// What parameters of one group with one step count have in common.
struct AdamGroup {
  AdamOptions options;
  AdamCoefficients<double> coefficients;
  const float* device_lr = nullptr;  // CUDA: replaces options.lr where it is not null
};

// What a pass over the elements adds up, in float64.
struct AdamTelemetry {
  double grad_square = 0;
  double update_square = 0;
  double param_square = 0;
  double lost = 0;  // updates that were not 0 and left the parameter where it was
};

// The sum of the squares of all gradients as they are stored, and 0, or NaN where one of them is
// not finite.
struct AdamNorm {
  double square_sum = 0;
  double poison = 0;
};

// All parameters of one step on one device.
struct AdamProblem {
  c10::ArrayRef<AdamTensor> tensors;
  c10::ArrayRef<AdamGroup> groups;
  uint64_t seed = 0;
  bool zero_grad = false;  // write zeros to the gradients behind the step
  // What only the device knows (CUDA; on the CPU it is read first, and is in grad_factor).
  const float* grad_scale = nullptr;  // gradients are divided by it
  const float* found_inf = nullptr;   // nothing is changed where it is not 0
  const AdamNorm* norm = nullptr;     // for the two below
  double max_grad_norm = 0;           // gradients are scaled down to it, unless it is 0
  bool skip_nonfinite = false;        // nothing is changed where a gradient is not finite
};

// The kernels, filled per device. The step; telemetry may be null, and is memory of the device, to
// be added to.
extern KernelStub<void(const AdamProblem&, AdamTelemetry*)> fused_adam_stub;
// Writes the norm of the gradients to memory of the device.
extern KernelStub<void(const AdamProblem&, AdamNorm*)> fused_adam_norm_stub;

}  // namespace pyext
