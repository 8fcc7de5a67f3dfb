// What the derivatives of the pooling ops share: the algebra of features and packed triangles in
// differentiable ATen ops.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/floor_divide.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/triu_indices.h>

#include "arithmetic.h"
#include "autograd/node.h"
#include "packed_triangle.h"

namespace pyext {

// In the dtype of the arithmetic, less the mean over positions.
inline at::Tensor features_of(const at::Tensor& x, bool center) {
  const auto wide = x.to(arithmetic_of(x));
  return center ? wide - wide.mean({2}, /*keepdim=*/true) : wide;
}

// Upper triangles (..., D (D + 1) / 2) of matrices (..., D, D), off-diagonal values times sqrt(2).
inline at::Tensor pack_triangle(const at::Tensor& full) {
  const auto d = full.sym_size(-1).guard_int(__FILE__, __LINE__);
  const auto places = at::triu_indices(d, d, 0, at::TensorOptions(at::kLong).device(full.device()));
  const auto on_diagonal = (places[0] == places[1]).to(full.scalar_type());
  const auto weights = on_diagonal * (1 - kSqrtTwo) + kSqrtTwo;
  return full.flatten(-2).index_select(-1, places[0] * d + places[1]) * weights;
}

// Symmetric matrices of the values as they are packed: off the diagonal times sqrt(2) still.
inline at::Tensor spread_triangle(const at::Tensor& packed, int64_t d) {
  const auto i = at::arange(d, packed.options().dtype(at::kLong));
  const auto low = at::minimum(i.unsqueeze(0), i.unsqueeze(1));
  const auto high = at::maximum(i.unsqueeze(0), i.unsqueeze(1));
  const auto places = low * d - at::floor_divide(low * (low - 1), 2) + high - low;
  auto sizes = packed.sym_sizes().vec();
  sizes.back() = d;
  sizes.push_back(d);
  return packed.index_select(-1, places.flatten()).view_symint(sizes);
}

// A symmetric matrix of `diagonal` on the diagonal and `other` elsewhere.
inline at::Tensor diagonal_and_other(int64_t d, double diagonal, double other,
                                     const at::TensorOptions& options) {
  return at::eye(d, options) * (diagonal - other) + other;
}

struct PassOn : OpNode {
  PassOn() : OpNode("PassOn") {}
  variable_list gradients(variable_list&& grads) override { return std::move(grads); }
};

// The value of a kernel, with the derivatives of the formula for it.
inline at::Tensor with_derivatives_of(const at::Tensor& formula, const at::Tensor& value) {
  NodePtr owner;
  if (record<PassOn>(owner, formula) != nullptr) torch::autograd::set_history(value, owner);
  if (has_tangent(formula)) set_tangent(value, tangent_of(formula));
  return value;
}

inline bool is_derived(const at::Tensor& x) {
  return x.defined() && (has_tangent(x) || torch::autograd::compute_requires_grad(x));
}

}  // namespace pyext
