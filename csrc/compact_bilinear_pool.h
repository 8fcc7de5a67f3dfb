// compact_bilinear_pool: bilinear pooling by Tensor Sketch. With sum pooling the circular
// convolution of count sketches is a signed scatter of the Gram matrix:
//
//   out[(h1[i] + h2[j]) mod d] += s1[i] s2[j] sum over s of x[i, s] y[j, s]
//
// Gao, Beijbom, Zhang and Darrell 2016, "Compact Bilinear Pooling" (arXiv 1511.06062).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "kernel_stub.h"

namespace pyext {

// Where the features go, and with which sign: int64 hashes in [0, d) and signs +-1 per channel.
struct Sketches {
  at::Tensor hash1, sign1;  // (D1)
  at::Tensor hash2, sign2;  // (D2)
};

// The ops, through the dispatcher, for C++ callers. x (N, D1, S); y (N, D2, S), or none for x; the
// result is (N, output_dim).
at::Tensor compact_bilinear_pool(const at::Tensor& x, const std::optional<at::Tensor>& y,
                                 const Sketches& sketches, int64_t output_dim);
// The gradients in x and in y; the second is empty without y.
std::tuple<at::Tensor, at::Tensor> compact_bilinear_pool_backward(
    const at::Tensor& grad, const at::Tensor& x, const std::optional<at::Tensor>& y,
    const Sketches& sketches);

// The kernels, filled per device. An undefined y stands for x. Hashes (int64) and signs (of the
// arithmetic's dtype) are contiguous and on the device; `out`, `grad_x` and `grad_y` are contiguous
// and fresh, the others have any strides; an undefined `grad_y` is not wanted.
extern KernelStub<void(const at::Tensor& out, const at::Tensor& x, const at::Tensor& y,
                       const Sketches&)>
    compact_bilinear_pool_stub;
extern KernelStub<void(const at::Tensor& grad_x, const at::Tensor& grad_y, const at::Tensor& grad,
                       const at::Tensor& x, const at::Tensor& y, const Sketches&)>
    compact_bilinear_pool_backward_stub;

}  // namespace pyext
