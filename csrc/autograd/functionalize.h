// In-place and out= ops under functionalization (torch.compile, torch.export, functorch): run the
// functional op, then write its result back. torch does this itself only for custom ops that
// return nothing.
#pragma once

#include <ATen/FunctionalTensorWrapper.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <utility>
#include <vector>

namespace pyext {

// `compute` maps unwrapped inputs to the functional result; `target` receives it.
template <typename Compute>
at::Tensor& functionalize_into(at::Tensor& target, at::TensorList inputs, Compute&& compute) {
  namespace functionalization = at::functionalization::impl;
  std::vector<at::Tensor> unwrapped;
  for (const at::Tensor& x : inputs) {
    const bool is_functional = functionalization::isFunctionalTensor(x);
    TORCH_CHECK(functionalization::isFunctionalTensor(target) || !is_functional,
                "mutating a non-functional tensor with a functional tensor is not allowed");
    if (is_functional) functionalization::sync(x);
    unwrapped.push_back(is_functional ? functionalization::from_functional_tensor(x) : x);
  }
  at::Tensor result;
  {
    const at::AutoDispatchSkipFunctionalize guard;
    result = std::forward<Compute>(compute)(unwrapped);
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
