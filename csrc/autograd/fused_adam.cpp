// fused_adam has no derivative, as torch._fused_adam_ has none: a step that should be
// differentiated is one of torch.optim.Adam(differentiable=True). What is left is to say so, to
// announce what is written, and functionalization.
#include "fused_adam.h"

#include <ATen/FunctionalTensorWrapper.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

namespace pyext {
namespace {

using c10::OperatorHandle;
using torch::jit::Stack;

// How many of the leading arguments are lists of tensors: self, grads, exp_avgs, exp_avg_sqs,
// max_exp_avg_sqs and state_steps. grads and state_steps are only read.
constexpr size_t kLists = 6;
constexpr std::array<size_t, 4> kWritten{0, 2, 3, 4};

c10::ArrayRef<c10::IValue> arguments(const OperatorHandle& op, const Stack& stack) {
  return torch::jit::last(stack, op.schema().arguments().size());
}

void without_derivative(const OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  if (at::GradMode::is_enabled()) {
    for (const auto& list : arguments(op, *stack).slice(0, kLists)) {
      for (const at::Tensor& tensor : list.toTensorList()) {
        TORCH_CHECK(!tensor.requires_grad(), "pyext::", op.schema().name().substr(7),
                    " has no derivative, and an argument requires a gradient: call it within "
                    "torch.no_grad()");
      }
    }
  }
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

void bumping_versions(const OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  std::vector<at::Tensor> written;
  for (const size_t k : kWritten) {
    for (const at::Tensor& tensor : arguments(op, *stack)[k].toTensorList()) {
      written.push_back(tensor);
    }
  }
  op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  for (auto& tensor : written) torch::autograd::increment_version(tensor);
}

// Runs fused_adam, then writes its results back.
void functionalized(const OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  namespace functionalization = at::functionalization::impl;
  static const auto functional =
      c10::Dispatcher::singleton().findSchemaOrThrow("pyext::fused_adam", "");
  const auto unwrap = [](const at::Tensor& x) {
    if (!functionalization::isFunctionalTensor(x)) return x;
    functionalization::sync(x);
    return functionalization::from_functional_tensor(x);
  };
  auto args = torch::jit::pop(*stack, op.schema().arguments().size());
  Stack inner;
  for (const auto& arg : args) {
    if (arg.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : arg.toTensorList()) list.push_back(unwrap(tensor));
      inner.emplace_back(list);
    } else if (arg.isTensor()) {
      inner.emplace_back(unwrap(arg.toTensor()));
    } else {
      inner.push_back(arg);
    }
  }
  const at::AutoDispatchSkipFunctionalize guard;
  functional.callBoxed(&inner);
  for (size_t i = 0; i < kWritten.size(); ++i) {
    const auto results = inner[i].toTensorVector();
    const auto targets = args[kWritten[i]].toTensorVector();
    for (size_t k = 0; k < targets.size(); ++k) {
      if (functionalization::isFunctionalTensor(targets[k])) {
        functionalization::replace_(targets[k], results[k]);
        functionalization::commit_update(targets[k]);
        functionalization::sync(targets[k]);
      } else {
        targets[k].copy_(results[k]);
      }
    }
  }
}

TORCH_LIBRARY_IMPL(pyext, Autograd, m) {
  m.impl("fused_adam", torch::CppFunction::makeFromBoxedFunction<&without_derivative>());
  m.impl("fused_adam_", torch::CppFunction::makeFromBoxedFunction<&without_derivative>());
}

TORCH_LIBRARY_IMPL(pyext, ADInplaceOrView, m) {
  m.impl("fused_adam_", torch::CppFunction::makeFromBoxedFunction<&bumping_versions>());
}

TORCH_LIBRARY_IMPL(pyext, Functionalize, m) {
  m.impl("fused_adam_", torch::CppFunction::makeFromBoxedFunction<&functionalized>());
}

}  // namespace
}  // namespace pyext
