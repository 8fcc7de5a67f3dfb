// Derivatives of signed_sqrt, from its result y:  dx = dy / (2 |y|), and 0 where y = 0.
#include "signed_sqrt.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "autograd/functionalize.h"
#include "autograd/node.h"

namespace pyext {
namespace {

struct SignedSqrtBackward : OpNode {
  SignedSqrtBackward() : OpNode("SignedSqrtBackward") {}
  variable_list gradients(variable_list&& grads) override {
    if (!grads[0].defined()) return {at::Tensor()};
    return {signed_sqrt_backward(grads[0], unpack(result))};
  }
  void release_variables() override { result.reset_data(); }
  SavedVariable result;
};

// d/dy of g / (2 |y|) is -(g / (2 |y|)) / y, and 0 where y = 0.
at::Tensor derivative_in_result(const at::Tensor& grad, const at::Tensor& result) {
  const auto quotient = signed_sqrt_backward(grad, result).neg() / result;
  return at::where(result == 0, at::zeros_like(quotient), quotient);
}

struct SignedSqrtBackwardBackward : OpNode {
  SignedSqrtBackwardBackward() : OpNode("SignedSqrtBackwardBackward") {}
  variable_list gradients(variable_list&& grads) override {
    variable_list out(2);
    if (!grads[0].defined()) return out;
    const auto y = unpack(result);
    if (task_should_compute_output(0)) out[0] = signed_sqrt_backward(grads[0], y);
    if (task_should_compute_output(1)) out[1] = derivative_in_result(unpack(grad), y) * grads[0];
    return out;
  }
  void release_variables() override {
    grad.reset_data();
    result.reset_data();
  }
  SavedVariable grad, result;
};

at::Tensor signed_sqrt_autograd(const at::Tensor& self, double eps) {
  NodePtr owner;
  auto* node = record<SignedSqrtBackward>(owner, self);
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return signed_sqrt(self, eps);
  }();
  if (node != nullptr) torch::autograd::set_history(result, owner);
  if (has_tangent(self)) set_tangent(result, signed_sqrt_backward(tangent_of(self), result));
  // Last, so that what is saved has its tangent too: for forward over reverse mode.
  if (node != nullptr) node->result = SavedVariable(result, /*is_output=*/true);
  return result;
}

at::Tensor& signed_sqrt_in_place_autograd(at::Tensor& self, double eps) {
  NodePtr owner;
  auto* node = record<SignedSqrtBackward>(owner, self);
  torch::autograd::check_inplace(self, node != nullptr);
  const at::Tensor tangent = has_tangent(self) ? tangent_of(self) : at::Tensor();
  {
    const at::AutoDispatchBelowAutograd guard;
    signed_sqrt_(self, eps);
  }
  if (node != nullptr) torch::autograd::rebase_history(self, owner);
  if (tangent.defined()) {
    set_tangent(self, signed_sqrt_backward(tangent, primal_of(self)), /*in_place=*/true);
  }
  if (node != nullptr) {
    node->result = SavedVariable(self, /*is_output=*/true, /*is_inplace_on_view=*/self.is_view());
  }
  return self;
}

at::Tensor& signed_sqrt_out_autograd(const at::Tensor& self, double eps, at::Tensor& out) {
  if (torch::autograd::compute_requires_grad(self, out)) {
    torch::autograd::throw_error_out_requires_grad("signed_sqrt");
  }
  const at::AutoDispatchBelowAutograd guard;
  return signed_sqrt_out(self, eps, out);
}

at::Tensor signed_sqrt_backward_autograd(const at::Tensor& grad, const at::Tensor& result) {
  NodePtr owner;
  auto* node = record<SignedSqrtBackwardBackward>(owner, grad, result);
  auto grad_input = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return signed_sqrt_backward(grad, result);
  }();
  if (node != nullptr) {
    torch::autograd::set_history(grad_input, owner);
    node->grad = SavedVariable(grad, /*is_output=*/false);
    node->result = SavedVariable(result, /*is_output=*/false);
  }
  if (has_tangent(grad) || has_tangent(result)) {
    const auto y = primal_of(result);
    auto tangent = at::zeros_like(grad_input);
    if (has_tangent(grad)) tangent = signed_sqrt_backward(tangent_of(grad), y);
    if (has_tangent(result)) {
      tangent = tangent + derivative_in_result(primal_of(grad), y) * tangent_of(result);
    }
    set_tangent(grad_input, tangent);
  }
  return grad_input;
}

at::Tensor& signed_sqrt_in_place_bumping_version(at::Tensor& self, double eps) {
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    signed_sqrt_(self, eps);
  }
  torch::autograd::increment_version(self);
  return self;
}

at::Tensor& signed_sqrt_out_bumping_version(const at::Tensor& self, double eps, at::Tensor& out) {
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    signed_sqrt_out(self, eps, out);
  }
  torch::autograd::increment_version(out);
  return out;
}

at::Tensor& signed_sqrt_in_place_functionalized(at::Tensor& self, double eps) {
  return functionalize_into(self, self, [eps](at::TensorList x) { return signed_sqrt(x[0], eps); });
}

at::Tensor& signed_sqrt_out_functionalized(const at::Tensor& self, double eps, at::Tensor& out) {
  return functionalize_into(out, self, [eps](at::TensorList x) { return signed_sqrt(x[0], eps); });
}

TORCH_LIBRARY_IMPL(pyext, Autograd, m) {
  m.impl("signed_sqrt", signed_sqrt_autograd);
  m.impl("signed_sqrt_", signed_sqrt_in_place_autograd);
  m.impl("signed_sqrt.out", signed_sqrt_out_autograd);
  m.impl("signed_sqrt_backward", signed_sqrt_backward_autograd);
}

TORCH_LIBRARY_IMPL(pyext, ADInplaceOrView, m) {
  m.impl("signed_sqrt_", signed_sqrt_in_place_bumping_version);
  m.impl("signed_sqrt.out", signed_sqrt_out_bumping_version);
}

TORCH_LIBRARY_IMPL(pyext, Functionalize, m) {
  m.impl("signed_sqrt_", signed_sqrt_in_place_functionalized);
  m.impl("signed_sqrt.out", signed_sqrt_out_functionalized);
}

}  // namespace
}  // namespace pyext
