// Derivatives of cross_entropy and of its backward.
//
// On the CPU the gradient of a mean or a sum is formed in the forward pass, while a row is in
// cache: 8 bytes per float logit instead of 12 with a separate backward. The backward pass then
// hands it out if the loss is the end of the graph (its cotangent is 1), and otherwise recomputes
// it, scaled, into the same memory. float16 always takes the separate backward: its gradients need
// the scale of GradScaler before they are rounded.
#include <ATen/SavedTensorHooks.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros_like.h>

#include <array>

#include "autograd/cross_entropy_algebra.h"
#include "autograd/node.h"
#include "cross_entropy_boxed.h"

namespace pyext {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

constexpr std::array<OptionalTensor CrossEntropyOptions::*, 5> kOptionTensors{
    &CrossEntropyOptions::weight, &CrossEntropyOptions::row_smoothing, &CrossEntropyOptions::prior,
    &CrossEntropyOptions::target_b, &CrossEntropyOptions::row_lam};

// The arguments as a node keeps them: tensors as SavedVariables, which notice later mutation.
struct SavedArguments {
  void save(const at::Tensor& input_, const at::Tensor& target_,
            const CrossEntropyOptions& options_) {
    input = SavedVariable(input_, /*is_output=*/false);
    target = SavedVariable(target_, /*is_output=*/false);
    options = options_;
    for (size_t i = 0; i < kOptionTensors.size(); ++i) {
      auto& tensor = options.*kOptionTensors[i];
      if (!tensor) continue;
      tensors[i] = SavedVariable(*tensor, /*is_output=*/false);
      tensor.reset();
    }
  }
  CrossEntropyOptions unpacked_options(OpNode& node) const {
    auto result = options;
    for (size_t i = 0; i < kOptionTensors.size(); ++i) {
      auto tensor = node.unpack(tensors[i]);
      if (tensor.defined()) result.*kOptionTensors[i] = std::move(tensor);
    }
    return result;
  }
  void release() {
    input.reset_data();
    target.reset_data();
    for (auto& tensor : tensors) tensor.reset_data();
  }

  SavedVariable input, target;
  CrossEntropyOptions options;
  std::array<SavedVariable, kOptionTensors.size()> tensors;
};

struct CrossEntropyBackward : OpNode {
  CrossEntropyBackward() : OpNode("CrossEntropyBackward") {}

  variable_list gradients(variable_list&& grads) override {
    const bool with_stats = saved.options.return_stats;
    const at::Tensor grad_loss = grads[0], grad_lse = with_stats ? grads[1] : at::Tensor(),
                     grad_entropy = with_stats ? grads[2] : at::Tensor();
    variable_list out(2);
    if (!grad_loss.defined() && !grad_lse.defined() && !grad_entropy.defined()) return out;
    const bool only_loss = grad_loss.defined() && !grad_lse.defined() && !grad_entropy.defined();
    const bool may_use_formed =
        formed.defined() && only_loss && !at::GradMode::is_enabled() && is_plain_cpu(grad_loss);
    if (may_use_formed && grad_loss.item<double>() == 1.0) {
      out[0] = std::move(formed);
      return out;
    }
    const auto input = unpack(saved.input), target = unpack(saved.target);
    const auto normalizer_ = unpack(normalizer);
    const auto entropy_ = with_stats ? unpack(entropy) : at::empty({0}, normalizer_.options());
    const auto options = saved.unpacked_options(*this);
    if (may_use_formed) {
      out[0] = cross_entropy_backward_entry(grad_loss, {}, {}, input, target, normalizer_, entropy_,
                                            options, std::move(formed));
      return out;
    }
    if (task_should_compute_output(0)) {
      out[0] = cross_entropy_backward(grad_loss, grad_lse, grad_entropy, input, target, normalizer_,
                                      entropy_, options);
    }
    if (task_should_compute_output(1) && grad_loss.defined()) {
      out[1] = CrossEntropyAlgebra(input, target, options).probabilities_gradient(grad_loss);
    }
    return out;
  }

  void release_variables() override {
    saved.release();
    normalizer.reset_data();
    entropy.reset_data();
    formed.reset();
  }

  SavedArguments saved;
  SavedVariable normalizer, entropy;
  at::Tensor formed;  // the gradient for a cotangent of 1, or undefined
};

struct CrossEntropyBackwardBackward : OpNode {
  CrossEntropyBackwardBackward() : OpNode("CrossEntropyBackwardBackward") {}

  variable_list gradients(variable_list&& grads) override {
    variable_list out(5);
    const auto& v = grads[0];
    if (!v.defined()) return out;
    const auto input = unpack(saved.input), target = unpack(saved.target);
    const auto normalizer_ = unpack(normalizer), entropy_ = unpack(entropy);
    const auto options = saved.unpacked_options(*this);
    const auto loss = unpack(grad_loss), of_lse = unpack(grad_lse),
               of_entropy = unpack(grad_entropy);
    const CrossEntropyAlgebra algebra(input, target, options);
    // The gradient is linear in its cotangents, so a cotangent of ones gives its derivative.
    const auto along = [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
      return cross_entropy_backward(a, b, c, input, target, normalizer_, entropy_, options) * v;
    };
    if (loss.defined() && task_should_compute_output(0)) {
      out[0] = algebra.sum_to_loss(along(at::ones_like(loss), {}, {})).to(loss.scalar_type());
    }
    if (of_lse.defined() && task_should_compute_output(1)) {
      out[1] = algebra.sum_to_rows(along({}, at::ones_like(of_lse), {})).to(of_lse.scalar_type());
    }
    if (of_entropy.defined() && task_should_compute_output(2)) {
      out[2] = algebra.sum_to_rows(along({}, {}, at::ones_like(of_entropy)))
                   .to(of_entropy.scalar_type());
    }
    if (task_should_compute_output(3)) {
      const auto gradient = options.softcap
                                ? cross_entropy_backward(loss, of_lse, of_entropy, input, target,
                                                         normalizer_, entropy_, options)
                                : at::Tensor();
      out[3] = algebra.hessian_times(v, loss, of_lse, of_entropy, gradient);
    }
    if (loss.defined() && task_should_compute_output(4)) {
      out[4] = algebra.mixed_in_probabilities(v, loss);
    }
    return out;
  }

  void release_variables() override {
    saved.release();
    for (auto* variable : {&grad_loss, &grad_lse, &grad_entropy, &normalizer, &entropy}) {
      variable->reset_data();
    }
  }

  SavedArguments saved;
  SavedVariable grad_loss, grad_lse, grad_entropy, normalizer, entropy;
};

bool forms_gradient(const at::Tensor& input, const at::Tensor& target,
                    const CrossEntropyOptions& options) {
  return options.reduction != "none" && !options.return_stats && input.scalar_type() != at::kHalf &&
         input.requires_grad() && !target.requires_grad() && is_plain_cpu(input) &&
         is_plain_cpu(target) &&
         // Checkpointing and offloading want little to be kept: they hook what is saved.
         !at::SavedTensorDefaultHooks::get_hooks().has_value();
}

void check_differentiable(const CrossEntropyOptions& options) {
  const auto check = [](const OptionalTensor& tensor, const char* argument) {
    torch::autograd::check_no_requires_grad(tensor, argument, "cross_entropy");
  };
  check(options.weight, "weight");
  check(options.row_smoothing, "label_smoothing");
  check(options.prior, "smoothing");
  check(options.row_lam, "lam");
}

void set_tangents(const CrossEntropyOutputs& out, const at::Tensor& input, const at::Tensor& target,
                  const CrossEntropyOptions& options) {
  const auto x = primal_of(input), q = primal_of(target);
  const CrossEntropyAlgebra algebra(x, q, options);
  const auto ones = at::ones_like(out.loss);
  auto loss = at::zeros_like(out.loss);
  at::Tensor lse, entropy;
  if (has_tangent(input)) {
    const auto v = tangent_of(input);
    const auto along = [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
      return cross_entropy_backward(a, b, c, x, q, out.normalizer, out.entropy, options) * v;
    };
    loss = algebra.sum_to_loss(along(ones, {}, {}));
    if (options.return_stats) {
      lse = algebra.sum_to_rows(along({}, at::ones_like(out.lse), {}));
      entropy = algebra.sum_to_rows(along({}, {}, at::ones_like(out.entropy)));
    }
  }
  if (has_tangent(target)) {
    loss = loss + algebra.sum_to_loss(algebra.probabilities_gradient(ones) * tangent_of(target));
  }
  set_tangent(out.loss, loss.to(out.loss.scalar_type()));
  if (lse.defined()) set_tangent(out.lse, lse);
  if (entropy.defined()) set_tangent(out.entropy, entropy);
}

CrossEntropyOutputs cross_entropy_autograd(const at::Tensor& input, const at::Tensor& target,
                                           const CrossEntropyOptions& options) {
  check_differentiable(options);
  NodePtr owner;
  auto* node = record<CrossEntropyBackward>(owner, input, target);
  at::Tensor gradient;
  auto out = [&] {
    const bool forms = node != nullptr && forms_gradient(input, target, options);
    const at::AutoDispatchBelowADInplaceOrView guard;
    return forms ? cross_entropy_forward_entry(input, target, options, &gradient)
                 : cross_entropy(input, target, options);
  }();
  if (node != nullptr) {
    torch::autograd::set_history(out.loss, owner);
    node->saved.save(input, target, options);
    node->normalizer = SavedVariable(out.normalizer, /*is_output=*/false);
    if (options.return_stats) {
      torch::autograd::set_history(out.lse, owner);
      torch::autograd::set_history(out.entropy, owner);
      node->entropy = SavedVariable(out.entropy, /*is_output=*/true);
    }
    node->formed = std::move(gradient);
  }
  if (has_tangent(input) || has_tangent(target)) set_tangents(out, input, target, options);
  return out;
}

// The derivative is taken through `input`: normalizer and entropy are functions of it.
at::Tensor cross_entropy_backward_autograd(const at::Tensor& grad_loss, const at::Tensor& grad_lse,
                                           const at::Tensor& grad_entropy, const at::Tensor& input,
                                           const at::Tensor& target, const at::Tensor& normalizer,
                                           const at::Tensor& entropy,
                                           const CrossEntropyOptions& options) {
  check_differentiable(options);
  NodePtr owner;
  auto* node =
      record<CrossEntropyBackwardBackward>(owner, grad_loss, grad_lse, grad_entropy, input, target);
  const auto gradient = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return cross_entropy_backward(grad_loss, grad_lse, grad_entropy, input, target, normalizer,
                                  entropy, options);
  }();
  if (node != nullptr) {
    torch::autograd::set_history(gradient, owner);
    node->saved.save(input, target, options);
    node->grad_loss = SavedVariable(grad_loss, /*is_output=*/false);
    node->grad_lse = SavedVariable(grad_lse, /*is_output=*/false);
    node->grad_entropy = SavedVariable(grad_entropy, /*is_output=*/false);
    node->normalizer = SavedVariable(normalizer, /*is_output=*/false);
    node->entropy = SavedVariable(entropy, /*is_output=*/false);
  }
  const auto tangent_or_none = [](const at::Tensor& x) {
    return has_tangent(x) ? tangent_of(x) : at::Tensor();
  };
  const auto loss_tangent = tangent_or_none(grad_loss), lse_tangent = tangent_or_none(grad_lse),
             entropy_tangent = tangent_or_none(grad_entropy),
             input_tangent = tangent_or_none(input), target_tangent = tangent_or_none(target);
  const bool of_cotangents =
      loss_tangent.defined() || lse_tangent.defined() || entropy_tangent.defined();
  if (!of_cotangents && !input_tangent.defined() && !target_tangent.defined()) return gradient;
  const auto x = primal_of(input), q = primal_of(target);
  const CrossEntropyAlgebra algebra(x, q, options);
  auto tangent = at::zeros_like(gradient);
  if (of_cotangents) {
    tangent = cross_entropy_backward(loss_tangent, lse_tangent, entropy_tangent, x, q,
                                     primal_of(normalizer), primal_of(entropy), options);
  }
  if (input_tangent.defined()) {
    tangent =
        tangent + algebra.hessian_times(input_tangent, primal_of(grad_loss), primal_of(grad_lse),
                                        primal_of(grad_entropy), gradient);
  }
  if (target_tangent.defined() && grad_loss.defined()) {
    tangent = tangent + algebra.gradient_tangent(target_tangent, primal_of(grad_loss));
  }
  set_tangent(gradient, tangent);
  return gradient;
}

TORCH_LIBRARY_IMPL(pyext, Autograd, m) {
  register_cross_entropy<cross_entropy_autograd, cross_entropy_backward_autograd>(m);
}

}  // namespace
}  // namespace pyext
