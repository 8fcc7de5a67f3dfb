// The algebra of cross_entropy's second derivatives, in differentiable ATen ops.
#pragma once

#include "cross_entropy.h"

namespace pyext {

// Row quantities are shaped like the loss without reduction, with a class axis of size 1.
class CrossEntropyAlgebra {
 public:
  CrossEntropyAlgebra(const at::Tensor& input, const at::Tensor& target,
                      const CrossEntropyOptions& options);

  // d gradient / d input, times v: the gradient being that of
  //   grad_loss . loss + grad_lse . lse + grad_entropy . entropy   (undefined: zero).
  // The Hessian is symmetric, so this serves backward and forward mode alike.
  at::Tensor hessian_times(const at::Tensor& v, const at::Tensor& grad_loss,
                           const at::Tensor& grad_lse, const at::Tensor& grad_entropy,
                           const at::Tensor& gradient) const;

  // For class probabilities q: the gradient of the loss in q, from grad_loss.
  at::Tensor probabilities_gradient(const at::Tensor& grad_loss) const;
  // The gradient of <v, gradient in the logits> in q, and the change of that gradient with q.
  at::Tensor mixed_in_probabilities(const at::Tensor& v, const at::Tensor& grad_loss) const;
  at::Tensor gradient_tangent(const at::Tensor& q_tangent, const at::Tensor& grad_loss) const;

  // Sums over the classes, and over the rows as the reduction of the loss asks.
  at::Tensor sum_to_rows(const at::Tensor& x) const;
  at::Tensor sum_to_loss(const at::Tensor& x) const;

 private:
  struct Rows {
    at::Tensor total;     // T, scaled as the reduction asks
    at::Tensor presence;  // the weight of the z-loss, scaled likewise
    at::Tensor dense;     // of w q
  };

  at::Tensor with_class_axis(const at::Tensor& rows) const { return rows.unsqueeze(axis_); }
  at::Tensor per_class(const at::Tensor& values) const;
  at::Tensor logits() const;  // z
  at::Tensor logits_derivative(const at::Tensor& z) const;
  at::Tensor row_values(const std::optional<at::Tensor>& values, double otherwise) const;
  at::Tensor loss_cotangent(const at::Tensor& grad_loss) const;
  Rows rows(const at::Tensor& z) const;

  at::Tensor input_, target_;
  CrossEntropyOptions options_;
  at::ScalarType dtype_;
  int64_t axis_;
};

}  // namespace pyext
