// Second derivatives of cross_entropy. With p = softmax(z), A the coefficient of p in the gradient,
// v' = v - <p, v> and H the entropy, the Hessian of a row times v is
//
//   A p v' + 2 zeta <p, v> p - k p (v' (log p + H) + v' + <dH/dz, v>),
//
// where zeta is the weight of the z-loss and k the cotangent of the entropy.
#include "autograd/cross_entropy_algebra.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "arithmetic.h"

namespace pyext {

CrossEntropyAlgebra::CrossEntropyAlgebra(const at::Tensor& input, const at::Tensor& target,
                                         const CrossEntropyOptions& options)
    : input_(input),
      target_(target),
      options_(options),
      dtype_(arithmetic_of(input)),
      axis_(input.dim() > 1 ? 1 : 0) {}

at::Tensor CrossEntropyAlgebra::per_class(const at::Tensor& values) const {
  std::vector<int64_t> shape(input_.dim(), 1);
  shape[axis_] = -1;
  return values.to(dtype_).view(shape);
}

at::Tensor CrossEntropyAlgebra::logits() const {
  const auto scaled = input_.to(dtype_) * options_.logit_scale;
  if (!options_.softcap) return scaled;
  return (scaled / *options_.softcap).tanh() * *options_.softcap;
}

at::Tensor CrossEntropyAlgebra::logits_derivative(const at::Tensor& z) const {
  if (!options_.softcap) return at::full_like(z, options_.logit_scale);
  return (1 - (z / *options_.softcap).square()) * options_.logit_scale;
}

at::Tensor CrossEntropyAlgebra::row_values(const std::optional<at::Tensor>& values,
                                           double otherwise) const {
  if (!values) return at::full({}, otherwise, input_.options().dtype(dtype_));
  auto rows = values->to(dtype_);
  while (rows.dim() < input_.dim() - 1) rows = rows.unsqueeze(-1);
  return with_class_axis(rows);
}

at::Tensor CrossEntropyAlgebra::loss_cotangent(const at::Tensor& grad_loss) const {
  const auto grad = grad_loss.to(dtype_);
  return options_.reduction == "none" ? with_class_axis(grad) : grad;
}

CrossEntropyAlgebra::Rows CrossEntropyAlgebra::rows(const at::Tensor& z) const {
  const auto& o = options_;
  const auto ones = at::ones_like(z);
  const auto weight = o.weight ? per_class(*o.weight) : ones;
  const auto prior = o.prior ? per_class(*o.prior) : ones;
  const auto kept = o.masked ? z.ne(-INFINITY).to(dtype_) : ones;
  const auto u_sum = (weight * prior * kept).sum(axis_, true);
  const auto shared = o.prior && !o.masked ? at::ones_like(u_sum) : (prior * kept).sum(axis_, true);
  const auto mass =
      masses(smoothing_from(o.smoothing), row_values(o.row_smoothing, o.label_smoothing), shared);
  const auto scales = cross_entropy_scales(target_, o, input_.sym_numel() / input_.sym_size(axis_),
                                           o.weight.value_or(at::Tensor()), dtype_);
  if (at::isFloatingType(target_.scalar_type())) {
    const auto presence = scales[0];
    const auto dense = mass.peak * presence;
    const auto dense_sum = (weight * target_.to(dtype_)).sum(axis_, true);
    return {mass.off * u_sum * presence + dense * dense_sum, presence, dense};
  }
  const auto lam =
      o.target_b ? row_values(o.row_lam, o.lam) : at::ones({}, input_.options().dtype(dtype_));
  const auto share = [&](const at::Tensor& target, const at::Tensor& part,
                         const at::Tensor& scale) {
    return with_class_axis(target.ne(o.ignore_index)) * part * scale;
  };
  const auto weight_of = [&](const at::Tensor& target) {
    const auto y = target.to(at::kLong).clamp(0, input_.sym_size(axis_) - 1);
    return weight.expand_as(z).gather(axis_, with_class_axis(y));
  };
  auto presence = share(target_, lam, scales[0]);
  auto picked = presence * weight_of(target_);
  if (o.target_b) {
    const auto second = share(*o.target_b, 1 - lam, scales[1]);
    picked = picked + second * weight_of(*o.target_b);
    presence = presence + second;
  }
  return {mass.peak * picked + mass.off * u_sum * presence, presence, at::Tensor()};
}

at::Tensor CrossEntropyAlgebra::hessian_times(const at::Tensor& v, const at::Tensor& grad_loss,
                                              const at::Tensor& grad_lse,
                                              const at::Tensor& grad_entropy,
                                              const at::Tensor& gradient) const {
  const auto z = logits();
  const auto derivative = logits_derivative(z);
  const auto v_z = v.to(dtype_) * derivative;
  const auto log_p = at::log_softmax(z, axis_);
  const auto p = log_p.exp();
  const auto mean = (p * v_z).sum(axis_, true);
  const auto centred = v_z - mean;
  auto result = at::zeros_like(z);
  if (grad_loss.defined()) {
    const auto g = loss_cotangent(grad_loss);
    const auto row = rows(z);
    const auto lse = at::logsumexp(z, {axis_}, true);
    const auto zeta = 2 * options_.z_loss * row.presence;
    result = result + g * p * ((row.total + zeta * lse) * centred + zeta * mean);
  }
  if (grad_lse.defined()) {
    result = result + with_class_axis(grad_lse.to(dtype_)) * p * centred;
  }
  if (grad_entropy.defined()) {
    const auto finite_log_p = at::where(p == 0, at::zeros_like(log_p), log_p);
    const auto entropy = -(p * finite_log_p).sum(axis_, true);
    const auto offset = finite_log_p + entropy;
    const auto change = -(p * offset * v_z).sum(axis_, true);  // <dH/dz, v>
    result =
        result - with_class_axis(grad_entropy.to(dtype_)) * p * (centred * (offset + 1) + change);
  }
  result = result * derivative;
  if (options_.softcap) {
    // d2z/dx2 = -2 scale z / cap^2 dz/dx, and the gradient holds one dz/dx already.
    const double factor = -2 * options_.logit_scale / (*options_.softcap * *options_.softcap);
    result = result + gradient.to(dtype_) * z * v.to(dtype_) * factor;
  }
  return result.to(input_.scalar_type());
}

at::Tensor CrossEntropyAlgebra::probabilities_gradient(const at::Tensor& grad_loss) const {
  const auto z = logits();
  auto result = -at::log_softmax(z, axis_) * rows(z).dense * loss_cotangent(grad_loss);
  if (options_.weight) result = result * per_class(*options_.weight);
  return result.to(target_.scalar_type());
}

at::Tensor CrossEntropyAlgebra::mixed_in_probabilities(const at::Tensor& v,
                                                       const at::Tensor& grad_loss) const {
  const auto z = logits();
  const auto v_z = v.to(dtype_) * logits_derivative(z);
  const auto mean = (at::softmax(z, axis_) * v_z).sum(axis_, true);
  auto result = (mean - v_z) * rows(z).dense * loss_cotangent(grad_loss);
  if (options_.weight) result = result * per_class(*options_.weight);
  return result.to(target_.scalar_type());
}

at::Tensor CrossEntropyAlgebra::gradient_tangent(const at::Tensor& q_tangent,
                                                 const at::Tensor& grad_loss) const {
  const auto z = logits();
  auto mass = q_tangent.to(dtype_) * rows(z).dense * loss_cotangent(grad_loss);
  if (options_.weight) mass = mass * per_class(*options_.weight);
  const auto result = at::softmax(z, axis_) * mass.sum(axis_, true) - mass;
  return (result * logits_derivative(z)).to(input_.scalar_type());
}

at::Tensor CrossEntropyAlgebra::sum_to_rows(const at::Tensor& x) const {
  return x.to(dtype_).sum(axis_);
}

at::Tensor CrossEntropyAlgebra::sum_to_loss(const at::Tensor& x) const {
  const auto per_row = sum_to_rows(x);
  return options_.reduction == "none" ? per_row : per_row.sum();
}

}  // namespace pyext
