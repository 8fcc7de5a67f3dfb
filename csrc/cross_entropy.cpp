// Cross-entropy: the device entries, and the ops for C++ callers.
#include "cross_entropy.h"

#include <ATen/DeviceGuard.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/util/irange.h>

#include "arithmetic.h"
#include "cross_entropy_boxed.h"
#include "cross_entropy_checks.h"
#include "cross_entropy_prepare.h"
#include "result_memory.h"

namespace pyext {

KernelStub<void(const CrossEntropyProblem&, const CrossEntropyResults&)> cross_entropy_stub(
    "cross_entropy");
KernelStub<void(const CrossEntropyProblem&, const CrossEntropyCotangents&, void*)>
    cross_entropy_backward_stub("cross_entropy_backward");
KernelStub<void(const CrossEntropyProblem&, const void*, void*, at::ScalarType)>
    cross_entropy_total_stub("cross_entropy");

namespace {

// Adds up in blocks of rows, whatever the number of threads; the order is part of the result.
template <typename scalar_t>
double blocked_sum(const scalar_t* values, int64_t count) {
  constexpr int64_t kLanes = 8;
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (const auto lane : c10::irange(kLanes)) lanes[lane] += values[i + lane];
  }
  double sum = 0;
  for (; i < count; ++i) sum += values[i];
  for (const auto lane : c10::irange(kLanes)) sum += lanes[lane];
  return sum;
}

// The rows carry the scale of the mean already. Adding 0 * scale makes the mean of nothing, or of
// rows that are all ignored, NaN as in torch: the scale is infinite there.
at::Tensor reduced(const at::Tensor& loss_rows, const PreparedCrossEntropy& r,
                   const CrossEntropyOptions& o, at::ScalarType dtype) {
  if (o.reduction == "none") return loss_rows.to(dtype);
  const auto& scales = r.scales;
  if (loss_rows.device().is_cuda()) {
    auto out = at::empty({}, loss_rows.options().dtype(dtype));
    cross_entropy_total_stub(at::kCUDA, r.problem, loss_rows.data_ptr(), out.data_ptr(), dtype);
    return out;
  }
  const auto sum = [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto* scale = scales.const_data_ptr<scalar_t>();
    return blocked_sum(loss_rows.const_data_ptr<scalar_t>(), loss_rows.numel()) + 0.0 * scale[0] +
           0.0 * scale[1];
  };
  const double value = loss_rows.scalar_type() == at::kDouble ? sum(double{}) : sum(float{});
  return at::scalar_tensor(value, loss_rows.options().dtype(dtype));
}

at::Tensor mask_or_empty(bool wanted, at::IntArrayRef rows, const at::TensorOptions& options) {
  return wanted ? at::empty(rows, options) : at::empty({0}, options);
}

}  // namespace

CrossEntropyOutputs cross_entropy_forward_entry(const at::Tensor& input, const at::Tensor& target,
                                                const CrossEntropyOptions& o,
                                                at::Tensor* gradient) {
  const at::OptionalDeviceGuard guard(at::device_of(input));
  auto prepared = prepare_cross_entropy(input, target, o);
  if (gradient != nullptr) *gradient = empty_result_like(input);
  lay_out(prepared, gradient != nullptr ? *gradient : at::Tensor());
  const auto rows = row_sizes(input);
  const auto options = input.options().dtype(arithmetic_of(input));
  CrossEntropyOutputs out;
  const auto loss_rows = at::empty(rows, options);
  auto pairs = rows;
  pairs.push_back(2);
  out.normalizer = at::empty(pairs, options);
  out.lse = mask_or_empty(o.return_stats, rows, options);
  out.entropy = mask_or_empty(o.return_stats, rows, options);
  out.target_log_prob = mask_or_empty(o.return_stats, rows, options);
  out.argmax = mask_or_empty(o.return_stats, rows, options.dtype(at::kLong));
  CrossEntropyResults results;
  results.loss = loss_rows.data_ptr();
  results.normalizer = out.normalizer.data_ptr();
  if (o.return_stats) {
    results.lse = out.lse.data_ptr();
    results.entropy = out.entropy.data_ptr();
    results.target_log_prob = out.target_log_prob.data_ptr();
    results.argmax = out.argmax.data_ptr<int64_t>();
  }
  if (gradient != nullptr) results.gradient = gradient->data_ptr();
  if (prepared.problem.rows > 0) {
    cross_entropy_stub(input.device().type(), prepared.problem, results);
  }
  out.loss = reduced(loss_rows, prepared, o, o.out_dtype.value_or(arithmetic_of(input)));
  return out;
}

at::Tensor cross_entropy_backward_entry(const at::Tensor& grad_loss, const at::Tensor& grad_lse,
                                        const at::Tensor& grad_entropy, const at::Tensor& input,
                                        const at::Tensor& target, const at::Tensor& normalizer,
                                        const at::Tensor& entropy, const CrossEntropyOptions& o,
                                        at::Tensor buffer) {
  const at::OptionalDeviceGuard guard(at::device_of(input));
  auto prepared = prepare_cross_entropy(input, target, o);
  const auto gradient = buffer.defined() ? std::move(buffer) : empty_result_like(input);
  lay_out(prepared, gradient);
  const auto rows = row_sizes(input);
  const auto dtype = arithmetic_of(input);
  const auto shaped = [&](const char* argument, const at::Tensor& values, at::IntArrayRef shape) {
    if (!values.defined()) return values;
    TORCH_CHECK_VALUE(values.sizes() == shape, "cross_entropy_backward: expected ", argument,
                      " of shape ", shape, ", got ", values.sizes());
    return values.to(dtype).contiguous();
  };
  const auto per_row = [&](const char* argument, const at::Tensor& values) {
    return shaped(argument, values, rows);
  };
  auto pairs = rows;
  pairs.push_back(2);
  const bool one_for_all = grad_loss.defined() && o.reduction != "none";
  TORCH_CHECK_VALUE(!one_for_all || grad_loss.numel() == 1,
                    "cross_entropy_backward: expected one value in grad_loss for reduction='",
                    o.reduction, "', got shape ", grad_loss.sizes());
  const auto loss = one_for_all ? grad_loss.to(dtype) : per_row("grad_loss", grad_loss);
  const auto lse_cotangent = per_row("grad_lse", grad_lse);
  const auto entropy_cotangent = per_row("grad_entropy", grad_entropy);
  const auto saved_normalizer = shaped("normalizer", normalizer, pairs);
  const auto saved_entropy = grad_entropy.defined() ? per_row("entropy", entropy) : at::Tensor();
  CrossEntropyCotangents cotangents;
  cotangents.loss = data_of(loss);
  cotangents.loss_stride = one_for_all ? 0 : 1;
  cotangents.lse = data_of(lse_cotangent);
  cotangents.entropy = data_of(entropy_cotangent);
  cotangents.saved_normalizer = data_of(saved_normalizer);
  cotangents.saved_entropy = data_of(saved_entropy);
  if (prepared.problem.rows > 0) {
    cross_entropy_backward_stub(input.device().type(), prepared.problem, cotangents,
                                gradient.data_ptr());
  }
  return gradient;
}

CrossEntropyOutputs cross_entropy(const at::Tensor& input, const at::Tensor& target,
                                  const CrossEntropyOptions& options) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("pyext::cross_entropy", "");
  torch::jit::Stack stack{input, target};
  options.push_to(stack);
  op.callBoxed(stack);
  return {stack[0].toTensor(), stack[1].toTensor(), stack[2].toTensor(),
          stack[3].toTensor(), stack[4].toTensor(), stack[5].toTensor()};
}

at::Tensor cross_entropy_backward(const at::Tensor& grad_loss, const at::Tensor& grad_lse,
                                  const at::Tensor& grad_entropy, const at::Tensor& input,
                                  const at::Tensor& target, const at::Tensor& normalizer,
                                  const at::Tensor& entropy, const CrossEntropyOptions& options) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("pyext::cross_entropy_backward", "");
  torch::jit::Stack stack{grad_loss, grad_lse, grad_entropy, input, target, normalizer, entropy};
  options.push_to(stack);
  op.callBoxed(stack);
  return stack[0].toTensor();
}

namespace {

CrossEntropyOutputs cross_entropy_without_gradient(const at::Tensor& input,
                                                   const at::Tensor& target,
                                                   const CrossEntropyOptions& options) {
  return cross_entropy_forward_entry(input, target, options, nullptr);
}

at::Tensor cross_entropy_backward_afresh(const at::Tensor& grad_loss, const at::Tensor& grad_lse,
                                         const at::Tensor& grad_entropy, const at::Tensor& input,
                                         const at::Tensor& target, const at::Tensor& normalizer,
                                         const at::Tensor& entropy,
                                         const CrossEntropyOptions& options) {
  return cross_entropy_backward_entry(grad_loss, grad_lse, grad_entropy, input, target, normalizer,
                                      entropy, options, {});
}

TORCH_LIBRARY_IMPL(pyext, CPU, m) {
  register_cross_entropy<cross_entropy_without_gradient, cross_entropy_backward_afresh>(m);
}
TORCH_LIBRARY_IMPL(pyext, CUDA, m) {
  register_cross_entropy<cross_entropy_without_gradient, cross_entropy_backward_afresh>(m);
}

}  // namespace
}  // namespace pyext
