// Derivatives of matrix_sqrt_pool and of its backward. The first derivative in backward mode is an
// op with a kernel of its own; forward mode and higher derivatives are those of the formulas below,
// written in differentiable ops.
#include "matrix_sqrt_pool.h"

#include <ATen/ops/where.h>
#include <torch/library.h>

#include "autograd/pooling.h"

namespace pyext {
namespace {

at::Tensor per_matrix(const at::Tensor& values) { return values.unsqueeze(1).unsqueeze(2); }

// The op by its definition, with what its gradient needs.
struct MatrixSqrtPoolFormula {
  MatrixSqrtPoolFormula(const at::Tensor& x_, int64_t iterations_, bool packed_)
      : x(features_of(x_, /*center=*/true)),
        iterations(iterations_),
        packed(packed_),
        channels(x.sym_size(1).guard_int(__FILE__, __LINE__)),
        dtype(x_.scalar_type()) {
    const auto covariance = mean_over_positions(at::bmm(x, x.transpose(1, 2)));
    raw_trace = covariance.diagonal(0, 1, 2).sum(1);
    trace = raw_trace.clamp_min(kLeastTrace);
    matrix = covariance / per_matrix(trace);
  }

  at::Tensor mean_over_positions(const at::Tensor& sums) const {
    return sums / c10::Scalar(x.sym_size(2));
  }

  at::Tensor identity(double times) const {
    return diagonal_and_other(channels, times, 0, x.options());
  }

  // sqrt(trace) times the root of the normed matrix; and the change of that root with the matrix.
  at::Tensor root(const at::Tensor& direction, at::Tensor* change) const {
    at::Tensor y = matrix, z, dy = direction, dz;
    for (int64_t i = 0; i < iterations; ++i) {
      const auto t = identity(1.5) - 0.5 * (i == 0 ? y : at::bmm(z, y));
      if (change != nullptr) {
        const auto dt = -0.5 * (i == 0 ? dy : at::bmm(dz, y) + at::bmm(z, dy));
        dy = at::bmm(dy, t) + at::bmm(y, dt);
        dz = i == 0 ? dt : at::bmm(dt, z) + at::bmm(t, dz);
      }
      y = at::bmm(y, t);
      z = i == 0 ? t : at::bmm(t, z);
    }
    if (change != nullptr) *change = dy;
    return y * per_matrix(trace.sqrt());
  }

  at::Tensor result() const {
    const auto full = root({}, nullptr);
    return (packed ? pack_triangle(full) : full).to(dtype);
  }

  at::Tensor gradient(const at::Tensor& grad_) const {
    auto grad = grad_.to(x.scalar_type());
    if (packed) {  // a value off the diagonal is sqrt(2) times each of two equal entries
      grad = spread_triangle(grad, channels) *
             diagonal_and_other(channels, 1, kSqrtTwo / 2, x.options());
    } else {
      grad = (grad + grad.transpose(1, 2)) / 2;
    }
    at::Tensor of_matrix;
    const auto full = root(grad * per_matrix(trace.sqrt()), &of_matrix);
    const auto along = (grad * full).flatten(1).sum(1) / 2;
    const auto inside = (of_matrix * matrix).flatten(1).sum(1);
    const auto of_trace = at::where(raw_trace >= kLeastTrace, (along - inside) / trace, 0);
    const auto of_covariance = of_matrix / per_matrix(trace) + per_matrix(of_trace) * identity(1);
    return mean_over_positions(at::bmm(2 * of_covariance, x)).to(dtype);
  }

  at::Tensor x;
  int64_t iterations;
  bool packed;
  int64_t channels;
  at::ScalarType dtype;
  at::Tensor raw_trace, trace, matrix;
};

struct MatrixSqrtPoolBackward : OpNode {
  MatrixSqrtPoolBackward() : OpNode("MatrixSqrtPoolBackward") {}

  variable_list gradients(variable_list&& grads) override {
    if (!grads[0].defined()) return {at::Tensor()};
    return {matrix_sqrt_pool_backward(grads[0], unpack(x), unpack(result), iterations, packed)};
  }

  void release_variables() override {
    x.reset_data();
    result.reset_data();
  }

  SavedVariable x, result;
  int64_t iterations;
  bool packed;
};

at::Tensor matrix_sqrt_pool_autograd(const at::Tensor& x, int64_t iterations, bool packed) {
  if (has_tangent(x)) return MatrixSqrtPoolFormula(x, iterations, packed).result();
  NodePtr owner;
  auto* node = record<MatrixSqrtPoolBackward>(owner, x);
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return matrix_sqrt_pool(x, iterations, packed);
  }();
  if (node != nullptr) {
    torch::autograd::set_history(result, owner);
    node->iterations = iterations;
    node->packed = packed;
    node->x = SavedVariable(x, /*is_output=*/false);
    node->result = SavedVariable(result, /*is_output=*/true);
  }
  return result;
}

// The derivative is taken through x: the result is a function of it.
at::Tensor matrix_sqrt_pool_backward_autograd(const at::Tensor& grad, const at::Tensor& x,
                                              const at::Tensor& result, int64_t iterations,
                                              bool packed) {
  const auto value = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return matrix_sqrt_pool_backward(grad, x, result, iterations, packed);
  }();
  if (!is_derived(grad) && !is_derived(x)) return value;
  return with_derivatives_of(MatrixSqrtPoolFormula(x, iterations, packed).gradient(grad), value);
}

TORCH_LIBRARY_IMPL(pyext, Autograd, m) {
  m.impl("matrix_sqrt_pool", matrix_sqrt_pool_autograd);
  m.impl("matrix_sqrt_pool_backward", matrix_sqrt_pool_backward_autograd);
}

}  // namespace
}  // namespace pyext
