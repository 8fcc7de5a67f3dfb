// From the arguments of cross_entropy to what the kernels read.
#include "cross_entropy_prepare.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <c10/util/irange.h>

#include "arithmetic.h"
#include "cross_entropy_checks.h"

namespace pyext {

KernelStub<void(const CrossEntropyProblem&, void*)> cross_entropy_scales_stub("cross_entropy");

namespace {

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

// cross_entropy_scales on the CPU without a temporary, since small batches feel each of them.
template <typename scalar_t>
at::Tensor mean_scales(const PreparedCrossEntropy& r, int64_t ignore_index,
                       const at::TensorOptions& options) {
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

at::Tensor sum_of_weights(const at::Tensor& target, const CrossEntropyOptions& o,
                          const at::Tensor& weight, at::ScalarType dtype) {
  const auto counted = target.ne(o.ignore_index);
  if (!weight.defined()) return counted.sum().to(dtype);
  // An index out of range must not be read with; its row gives NaN in the kernel.
  const auto index = target.to(at::kLong).clamp(0, weight.sym_size(0) - 1);
  return at::where(counted, weight.to(dtype).index_select(0, index.flatten()).view_as(target), 0)
      .sum();
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

PreparedCrossEntropy prepare_cross_entropy(const at::Tensor& input, const at::Tensor& target,
                                           const CrossEntropyOptions& o) {
  check_arguments(input, target, o);
  const auto dtype = arithmetic_of(input);
  const auto rows = row_sizes(input);
  PreparedCrossEntropy r;
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
  const bool counts_rows = o.reduction == "mean" && r.target.defined();
  const auto options = input.options().dtype(dtype);
  if (counts_rows && input.device().is_cpu()) {
    r.scales = dtype == at::kDouble ? mean_scales<double>(r, o.ignore_index, options)
                                    : mean_scales<float>(r, o.ignore_index, options);
  } else if (counts_rows && input.device().is_cuda()) {
    r.scales = at::empty({2}, options);  // written below
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
  if (counts_rows && input.device().is_cuda()) {
    cross_entropy_scales_stub(at::kCUDA, p, r.scales.data_ptr());
  }
  return r;
}

void lay_out(PreparedCrossEntropy& prepared, const at::Tensor& gradient) {
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

}  // namespace pyext
