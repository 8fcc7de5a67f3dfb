// Kernels of cross_entropy and of its backward for the dispatcher, made of functions that take the
// options as one argument. They are boxed: the ops have too many arguments to spell them out again.
#pragma once

#include <torch/library.h>

#include "cross_entropy.h"

namespace pyext {

template <CrossEntropyOutputs (*function)(const at::Tensor& input, const at::Tensor& target,
                                          const CrossEntropyOptions& options)>
void boxed_cross_entropy(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  constexpr size_t kCount = 2 + CrossEntropyOptions::kCount;
  const auto options = CrossEntropyOptions::from(*stack);
  const auto arguments = torch::jit::last(*stack, kCount);
  auto out = function(arguments[0].toTensor(), arguments[1].toTensor(), options);
  torch::jit::drop(*stack, kCount);
  torch::jit::push(*stack, std::move(out.loss), std::move(out.normalizer), std::move(out.lse),
                   std::move(out.entropy), std::move(out.target_log_prob), std::move(out.argmax));
}

template <at::Tensor (*function)(const at::Tensor& grad_loss, const at::Tensor& grad_lse,
                                 const at::Tensor& grad_entropy, const at::Tensor& input,
                                 const at::Tensor& target, const at::Tensor& normalizer,
                                 const at::Tensor& entropy, const CrossEntropyOptions& options)>
void boxed_cross_entropy_backward(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  constexpr size_t kCount = 7 + CrossEntropyOptions::kCount;
  const auto options = CrossEntropyOptions::from(*stack);
  const auto arguments = torch::jit::last(*stack, kCount);
  const auto or_undefined = [&](int i) {
    return arguments[i].isNone() ? at::Tensor() : arguments[i].toTensor();
  };
  auto gradient =
      function(or_undefined(0), or_undefined(1), or_undefined(2), arguments[3].toTensor(),
               arguments[4].toTensor(), arguments[5].toTensor(), arguments[6].toTensor(), options);
  torch::jit::drop(*stack, kCount);
  torch::jit::push(*stack, std::move(gradient));
}

template <auto forward, auto backward>
void register_cross_entropy(torch::Library& m) {
  using torch::CppFunction;
  m.impl("cross_entropy", CppFunction::makeFromBoxedFunction<&boxed_cross_entropy<forward>>());
  m.impl("cross_entropy_backward",
         CppFunction::makeFromBoxedFunction<&boxed_cross_entropy_backward<backward>>());
}

}  // namespace pyext
