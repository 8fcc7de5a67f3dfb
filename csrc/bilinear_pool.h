// bilinear_pool: sums of outer products of features over positions, rooted and normed.
//
//   G = scale * sum over s of x[:, s] y[:, s]^T,   Y = signed_sqrt(G, eps),   Z = Y / max(|Y|,
//   1e-12)
//
// Lin, RoyChowdhury and Maji 2015, "Bilinear CNN Models for Fine-grained Visual Recognition".
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "kernel_stub.h"
#include "math.h"

namespace pyext {

struct BilinearPoolOptions {
  double scale;  // 1 / positions unless the caller gives another
  double eps;
  bool signed_sqrt, l2;
  bool packed;  // the upper triangle, row by row, off-diagonal values times sqrt(2)
  bool center;  // less the mean over positions
};

constexpr double kLeastNorm = 1e-12;  // as torch.nn.functional.normalize
constexpr double kSqrtHalf = 0.70710678118654752440;

// The ops, through the dispatcher, for C++ callers. x (N, D1, S); y (N, D2, S), or none for the
// products of x with itself; scale none: 1 / S. The result (N, D1, D2) or packed
// (N, D1 (D1 + 1) / 2), and the norms (N) that it was divided by (1 without l2) in the dtype of
// the arithmetic.
std::tuple<at::Tensor, at::Tensor> bilinear_pool(const at::Tensor& x,
                                                 const std::optional<at::Tensor>& y,
                                                 std::optional<double> scale, double eps,
                                                 bool signed_sqrt, bool l2, bool packed,
                                                 bool center);
// The gradients in x and in y; the second is empty without y.
std::tuple<at::Tensor, at::Tensor> bilinear_pool_backward(
    const at::Tensor& grad, const at::Tensor& x, const std::optional<at::Tensor>& y,
    const at::Tensor& result, const at::Tensor& norm, std::optional<double> scale, double eps,
    bool signed_sqrt, bool l2, bool packed, bool center);

// The kernels, filled per device. An undefined y stands for x. `out`, `norm`, `grad_x` and `grad_y`
// are contiguous and fresh, the others have any strides; an undefined `grad_y` is not wanted.
extern KernelStub<void(const at::Tensor& out, const at::Tensor& norm, const at::Tensor& x,
                       const at::Tensor& y, const BilinearPoolOptions&)>
    bilinear_pool_stub;
extern KernelStub<void(const at::Tensor& grad_x, const at::Tensor& grad_y, const at::Tensor& grad,
                       const at::Tensor& x, const at::Tensor& y, const at::Tensor& result,
                       const at::Tensor& norm, const BilinearPoolOptions&)>
    bilinear_pool_backward_stub;

}  // namespace pyext
