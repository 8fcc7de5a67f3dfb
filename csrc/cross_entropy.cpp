// Cross-entropy: from arguments to what the kernels read, and the device entries.
#include "cross_entropy.h"

#include <ATen/ATen.h>
#include <ATen/DeviceGuard.h>
#include <ATen/TensorUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/irange.h>
#include <torch/library.h>

#include "cross_entropy_checks.h"
#include "huge_pages.h"

namespace pyext {

KernelStub<void(const CrossEntropyProblem&, const CrossEntropyResults&)> cross_entropy_stub(
    "cross_entropy");
KernelStub<void(const CrossEntropyProblem&, const CrossEntropyCotangents&, void*)>
    cross_entropy_backward_stub("cross_entropy_backward");
KernelStub<void(const CrossEntropyProblem&, void*)> cross_entropy_scales_stub("cross_entropy");
KernelStub<void(const CrossEntropyProblem&, const void*, void*, at::ScalarType)>
    cross_entropy_total_stub("cross_entropy");

namespace {

at::ScalarType arithmetic_type(const at::Tensor& input) {
  return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// A problem and the tensors that its pointers point into.
struct Prepared {
  CrossEntropyProblem problem;
  at::Tensor input, target, target_b, probabilities, weight, prior, class_mass, class_mass_sum,
      row_smoothing, row_lam, scales;
};

const void* data_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

const int64_t* indices_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<int64_t>() : nullptr;
}

// A value per sample (N) is repeated over the other axes.
at::Tensor expanded_to_rows(const std::optional<at::Tensor>& values, at::IntArrayRef rows,
                            at::ScalarType dtype) {
  if (!values) return {};
  auto expanded = *values;
  while (expanded.dim() < static_cast<int64_t>(rows.size())) expanded = expanded.unsqueeze(-1);
  return expanded.to(dtype).expand(rows).contiguous();
}

at::Tensor as_indices(const at::Tensor& target) { return target.to(at::kLong).contiguous(); }

// Merges neighbouring axes that every operand steps through evenly. Returns false when more axes
// are left than a layout holds.
bool lay_out(RowLayout& layout,
             std::initializer_list<std::pair<RowLayout::Operand, at::Tensor>> operands) {
  const auto& first = operands.begin()->second;
  const int64_t class_axis = first.dim() > 1 ? 1 : 0;
  layout.dims = 0;
  for (const auto axis : c10::irange(first.dim())) {
    if (axis == class_axis || first.size(axis) == 1) continue;
    const int last = layout.dims - 1;
    bool merges = last >= 0;
    for (const auto& [operand, tensor] : operands) {
      merges = merges && layout.strides[operand][last] == tensor.stride(axis) * tensor.size(axis);
    }
    if (!merges && layout.dims == RowLayout::kMaxDims) return false;
    const int d = merges ? last : layout.dims++;
    layout.sizes[d] = (merges ? layout.sizes[d] : 1) * first.size(axis);
    for (const auto& [operand, tensor] : operands) {
      layout.strides[operand][d] = tensor.stride(axis);
    }
  }
  for (const auto& [operand, tensor] : operands) {
    layout.class_stride[operand] = tensor.stride(class_axis);
  }
  return true;
}

void lay_out(Prepared& prepared, const at::Tensor& gradient) {
  const auto fits = [&] {
    auto& layout = prepared.problem.layout;
    const auto& input = prepared.input;
    const auto& gradient_ = gradient.defined() ? gradient : input;
    if (!prepared.probabilities.defined()) {
      return lay_out(layout, {{RowLayout::kInput, input}, {RowLayout::kGradient, gradient_}});
    }
    return lay_out(layout, {{RowLayout::kInput, input},
                            {RowLayout::kProbabilities, prepared.probabilities},
                            {RowLayout::kGradient, gradient_}});
  };
  if (!fits()) {
    // More than eight axes that do not merge: copies are the simple way out.
    prepared.input = prepared.input.contiguous();
    if (prepared.probabilities.defined()) {
      prepared.probabilities = prepared.probabilities.contiguous();
    }
    TORCH_CHECK(fits(), "cross_entropy: the strides of the gradient do not merge");
  }
  prepared.problem.input = data_of(prepared.input);
  prepared.problem.probabilities = data_of(prepared.probabilities);
}

// cross_entropy_scales on the CPU without a temporary, since small batches feel each of them.
template <typename scalar_t>
at::Tensor mean_scales(const Prepared& r, int64_t ignore_index, const at::TensorOptions& options) {
  const auto* weight =
      r.weight.defined() ? r.weight.const_data_ptr<scalar_t>() : static_cast<scalar_t*>(nullptr);
  const auto scale = [&](const at::Tensor& target) {
    const int64_t* y = target.const_data_ptr<int64_t>();
    int64_t count = 0;
    double sum = 0;
    for (const auto i : c10::irange(target.numel())) {
      if (y[i] == ignore_index) continue;
      ++count;
      if (weight != nullptr) sum += weight[y[i]];
    }
    return static_cast<scalar_t>(1.0 / (weight != nullptr ? sum : static_cast<double>(count)));
  };
  auto scales = at::empty({2}, options);
  auto* out = scales.data_ptr<scalar_t>();
  out[0] = scale(r.target);
  out[1] = r.target_b.defined() ? scale(r.target_b) : out[0];
  return scales;
}

Prepared prepare(const at::Tensor& input, const at::Tensor& target, const CrossEntropyOptions& o) {
  check_arguments(input, target, o);
  const auto dtype = arithmetic_type(input);
  const auto rows = row_sizes(input);
  Prepared r;
  auto& p = r.problem;
  p.classes = input.size(input.dim() > 1 ? 1 : 0);
  p.rows = input.numel() / p.classes;
  r.input = input;
  if (at::isFloatingType(target.scalar_type())) {
    r.probabilities = target;
    p.probabilities_dtype = target.scalar_type();
  } else {
    r.target = as_indices(target);
    if (o.target_b) r.target_b = as_indices(*o.target_b);
    if (input.device().is_cpu() || o.validate) {
      check_target_range(r.target.cpu(), p.classes, o.ignore_index, "target");
      if (o.target_b) check_target_range(r.target_b.cpu(), p.classes, o.ignore_index, "target_b");
    }
  }
  if (o.weight) r.weight = o.weight->detach().to(dtype).contiguous();
  if (o.prior) r.prior = o.prior->detach().to(dtype).contiguous();
  r.class_mass = r.weight.defined() && r.prior.defined() ? r.weight * r.prior
                 : r.weight.defined()                    ? r.weight
                                                         : r.prior;
  if (r.class_mass.defined()) r.class_mass_sum = r.class_mass.sum().reshape({1});
  r.row_smoothing = expanded_to_rows(o.row_smoothing, rows, dtype);
  r.row_lam = expanded_to_rows(o.row_lam, rows, dtype);
  if (o.target_b && !r.row_lam.defined()) p.lam = o.lam;
  if (input.device().is_cpu() && o.reduction == "mean" && r.target.defined()) {
    const auto options = input.options().dtype(dtype);
    r.scales = dtype == at::kDouble ? mean_scales<double>(r, o.ignore_index, options)
                                    : mean_scales<float>(r, o.ignore_index, options);
  } else if (input.device().is_cuda() && o.reduction == "mean" && r.target.defined()) {
    r.scales = at::empty({2}, input.options().dtype(dtype));  // written below
  } else {
    r.scales = cross_entropy_scales(target, o, p.rows, r.weight, dtype);
  }

  p.dtype = input.scalar_type();
  p.target = indices_of(r.target);
  p.target_b = indices_of(r.target_b);
  p.weight = data_of(r.weight);
  p.prior = data_of(r.prior);
  p.class_mass = data_of(r.class_mass);
  p.class_mass_sum = data_of(r.class_mass_sum);
  p.row_smoothing = data_of(r.row_smoothing);
  p.row_lam = data_of(r.row_lam);
  p.scales = data_of(r.scales);
  p.label_smoothing = o.label_smoothing;
  p.z_loss = o.z_loss;
  p.logit_scale = o.logit_scale;
  p.capped = o.softcap.has_value();
  p.softcap = o.softcap.value_or(0.0);
  p.smoothing = smoothing_from(o.smoothing);
  p.ignore_index = o.ignore_index;
  p.masked = o.masked;
  if (input.device().is_cuda() && o.reduction == "mean" && r.target.defined()) {
    cross_entropy_scales_stub(at::kCUDA, p, r.scales.data_ptr());
  }
  return r;
}

at::Tensor fresh_gradient(const at::Tensor& input) {
  auto gradient = at::empty_like(input, at::MemoryFormat::Preserve);
  advise_huge_pages(gradient);
  return gradient;
}

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
at::Tensor reduced(const at::Tensor& loss_rows, const Prepared& r, const CrossEntropyOptions& o,
                   at::ScalarType dtype) {
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

at::Tensor sum_of_weights(const at::Tensor& target, const CrossEntropyOptions& o,
                          const at::Tensor& weight, at::ScalarType dtype) {
  const auto counted = target.ne(o.ignore_index);
  if (!weight.defined()) return counted.sum().to(dtype);
  // An index out of range must not be read with; its row gives NaN in the kernel.
  const auto index = target.to(at::kLong).clamp(0, weight.sym_size(0) - 1);
  return at::where(counted, weight.to(dtype).index_select(0, index.flatten()).view_as(target), 0)
      .sum();
}

at::Tensor mask_or_empty(bool wanted, at::IntArrayRef rows, const at::TensorOptions& options) {
  return wanted ? at::empty(rows, options) : at::empty({0}, options);
}

}  // namespace

at::Tensor cross_entropy_scales(const at::Tensor& target, const CrossEntropyOptions& o,
                                const c10::SymInt& rows, const at::Tensor& weight,
                                at::ScalarType dtype) {
  const auto options = target.options().dtype(dtype);
  if (o.reduction != "mean") return at::ones({2}, options);
  if (at::isFloatingType(target.scalar_type())) {
    return at::ones({2}, options) / rows;
  }
  const auto first = sum_of_weights(target, o, weight, dtype);
  const auto second = o.target_b ? sum_of_weights(*o.target_b, o, weight, dtype) : first;
  return at::stack({first, second}).reciprocal();
}

CrossEntropyOutputs cross_entropy_forward_entry(const at::Tensor& input, const at::Tensor& target,
                                                const CrossEntropyOptions& o,
                                                at::Tensor* gradient) {
  const at::OptionalDeviceGuard guard(at::device_of(input));
  auto prepared = prepare(input, target, o);
  if (gradient != nullptr) *gradient = fresh_gradient(input);
  lay_out(prepared, gradient != nullptr ? *gradient : at::Tensor());
  const auto rows = row_sizes(input);
  const auto options = input.options().dtype(arithmetic_type(input));
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
  out.loss = reduced(loss_rows, prepared, o, o.out_dtype.value_or(arithmetic_type(input)));
  return out;
}

at::Tensor cross_entropy_backward_entry(const at::Tensor& grad_loss, const at::Tensor& grad_lse,
                                        const at::Tensor& grad_entropy, const at::Tensor& input,
                                        const at::Tensor& target, const at::Tensor& normalizer,
                                        const at::Tensor& entropy, const CrossEntropyOptions& o,
                                        at::Tensor buffer) {
  const at::OptionalDeviceGuard guard(at::device_of(input));
  auto prepared = prepare(input, target, o);
  const auto gradient = buffer.defined() ? std::move(buffer) : fresh_gradient(input);
  lay_out(prepared, gradient);
  const auto rows = row_sizes(input);
  const auto dtype = arithmetic_type(input);
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

void forward_boxed(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  const auto arguments = torch::jit::last(*stack, 2 + CrossEntropyOptions::kCount);
  const auto options = CrossEntropyOptions::from(*stack);
  auto out = cross_entropy_forward_entry(arguments[0].toTensor(), arguments[1].toTensor(), options,
                                         nullptr);
  torch::jit::drop(*stack, 2 + CrossEntropyOptions::kCount);
  torch::jit::push(*stack, std::move(out.loss), std::move(out.normalizer), std::move(out.lse),
                   std::move(out.entropy), std::move(out.target_log_prob), std::move(out.argmax));
}

void backward_boxed(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  const auto arguments = torch::jit::last(*stack, 7 + CrossEntropyOptions::kCount);
  const auto tensor = [&](int i) {
    return arguments[i].isNone() ? at::Tensor() : arguments[i].toTensor();
  };
  const auto options = CrossEntropyOptions::from(*stack);
  auto gradient = cross_entropy_backward_entry(tensor(0), tensor(1), tensor(2), tensor(3),
                                               tensor(4), tensor(5), tensor(6), options, {});
  torch::jit::drop(*stack, 7 + CrossEntropyOptions::kCount);
  torch::jit::push(*stack, std::move(gradient));
}

void register_entries(torch::Library& m) {
  m.impl("cross_entropy", torch::CppFunction::makeFromBoxedFunction<&forward_boxed>());
  m.impl("cross_entropy_backward", torch::CppFunction::makeFromBoxedFunction<&backward_boxed>());
}

TORCH_LIBRARY_IMPL(pyext, CPU, m) { register_entries(m); }
TORCH_LIBRARY_IMPL(pyext, CUDA, m) { register_entries(m); }

}  // namespace
}  // namespace pyext
