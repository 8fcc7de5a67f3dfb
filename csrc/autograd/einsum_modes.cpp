// einsum where something other than autograd is interested in a call: functionalization, the older
// vmap and autocast. Each makes of it another einsum.
#include <ATen/LegacyBatchedTensorImpl.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include <algorithm>

#include "autograd/autocast.h"
#include "autograd/functionalize.h"
#include "einsum.h"

namespace pyext {
namespace {

at::Tensor& einsum_out_functionalized(c10::string_view equation, at::TensorList operands,
                                      const c10::Scalar& alpha, const c10::Scalar& beta,
                                      std::optional<at::ScalarType> accumulate_dtype,
                                      at::OptionalIntArrayRef path, at::Tensor& out) {
  const std::string text(equation);
  const EinsumOptions options{alpha, "contiguous", accumulate_dtype, path};
  std::vector<at::Tensor> inputs = operands.vec();
  inputs.push_back(out);
  return functionalize_into(out, inputs, [&](at::TensorList x) {
    at::Tensor sum = einsum(text, x.slice(0, x.size() - 1), options);
    return beta.equal(0) ? sum : sum + beta * x.back();
  });
}

// Under the older vmap, of torch.autograd.grad(is_grads_batched=True): every level of it is a
// label.
at::Tensor with_batches(c10::string_view equation, at::TensorList operands,
                        const c10::Scalar& alpha, c10::string_view layout,
                        std::optional<at::ScalarType> accumulate_dtype,
                        at::OptionalIntArrayRef path) {
  constexpr Label kLevels = 0xf000;  // letters for private use
  std::vector<int64_t> ranks, levels;
  for (const auto& operand : operands) ranks.push_back(operand.dim());
  const Expression expression = parse_labels(std::string(equation), ranks);
  std::string text;
  std::vector<at::Tensor> values;
  for (size_t i = 0; i < operands.size(); ++i) {
    Labels labels = expression.inputs[i];
    if (const auto* batched = at::maybeGetBatchedImpl(operands[i])) {
      values.push_back(batched->value());
      std::vector<at::BatchDim> dims(batched->bdims().begin(), batched->bdims().end());
      std::sort(dims.begin(), dims.end(),
                [](const auto& x, const auto& y) { return x.dim() < y.dim(); });
      for (const auto& dim : dims) {
        labels.insert(labels.begin() + dim.dim(), static_cast<Label>(kLevels + dim.level()));
        levels.push_back(dim.level());
      }
    } else {
      values.push_back(operands[i]);
    }
    text += (i > 0 ? "," : "");
    text += letters_text(labels);
  }
  std::sort(levels.begin(), levels.end());
  levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
  Labels output;
  at::BatchDims dims;
  for (const int64_t level : levels) {
    dims.emplace_back(level, static_cast<int64_t>(output.size()));
    output.push_back(static_cast<Label>(kLevels + level));
  }
  output.insert(output.end(), expression.output.begin(), expression.output.end());
  text += "->" + letters_text(output);
  return at::makeBatched(einsum(text, values, {alpha, std::string(layout), accumulate_dtype, path}),
                         dims);
}

// As torch's matrix products: operands of a wider type are cast to the type of autocast.
template <c10::DeviceType device, c10::DispatchKey key>
at::Tensor einsum_autocast(c10::string_view equation, at::TensorList operands,
                           const c10::Scalar& alpha, c10::string_view layout,
                           std::optional<at::ScalarType> accumulate_dtype,
                           at::OptionalIntArrayRef path) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKeySet{key});
  return einsum(std::string(equation), autocast(operands, device),
                {alpha, std::string(layout), accumulate_dtype, path});
}

TORCH_LIBRARY_IMPL(pyext, Functionalize, m) { m.impl("einsum.out", einsum_out_functionalized); }

TORCH_LIBRARY_IMPL(pyext, Batched, m) { m.impl("einsum", with_batches); }

TORCH_LIBRARY_IMPL(pyext, AutocastCPU, m) {
  m.impl("einsum", einsum_autocast<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>);
}

TORCH_LIBRARY_IMPL(pyext, AutocastCUDA, m) {
  m.impl("einsum", einsum_autocast<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>);
}

}  // namespace
}  // namespace pyext
