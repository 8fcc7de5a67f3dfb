// In-place and out= ops under functionalization (torch.compile, torch.export, functorch): run the
// functional op, then write its result back. torch does this itself only for custom ops that
// return nothing.
#pragma once

#include <ATen/FunctionalTensorWrapper.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <utility>

namespace pyext {

// `compute` maps an unwrapped input to the functional result; `target` receives it.
template <typename Compute>
at::Tensor& functionalize_into(at::Tensor& target, const at::Tensor& input, Compute&& compute) {
  namespace functionalization = at::functionalization::impl;
  const auto unwrap = [](const at::Tensor& x) {
    if (!functionalization::isFunctionalTensor(x)) return x;
    functionalization::sync(x);
    return functionalization::from_functional_tensor(x);
  };
  TORCH_CHECK(functionalization::isFunctionalTensor(target) ||
                  !functionalization::isFunctionalTensor(input),
              "mutating a non-functional tensor with a functional tensor is not allowed");
  at::Tensor result;
  {
    const at::AutoDispatchSkipFunctionalize guard;
    result = std::forward<Compute>(compute)(unwrap(input));
  }
  if (!functionalization::isFunctionalTensor(target)) {
    const at::AutoDispatchSkipFunctionalize guard;
    target.resize_(result.sizes()).copy_(result);
    return target;
  }
  functionalization::replace_(target, result.to(target.scalar_type()));
  functionalization::commit_update(target);
  functionalization::sync(target);
  return target;
}

}  // namespace pyext
