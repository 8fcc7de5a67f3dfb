// The checks of cross_entropy; the table of bad input is in the docstring of pyext.cross_entropy.
#include "cross_entropy_checks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/all.h>

#include <cmath>

namespace pyext {
namespace {

bool is_class_index(const at::Tensor& target) {
  return at::isIntegralType(target.scalar_type(), /*includeBool=*/false);
}

void check_device(const char* argument, const at::Tensor& tensor, const at::Tensor& input) {
  TORCH_CHECK_VALUE(tensor.device() == input.device(), "cross_entropy: expected ", argument,
                    " on the device of input, ", input.device(), ", got ", tensor.device());
}

void check_per_class(const char* argument, const at::Tensor& tensor, const at::Tensor& input,
                     int64_t classes) {
  TORCH_CHECK_TYPE(at::isFloatingType(tensor.scalar_type()), "cross_entropy: expected ", argument,
                   " to be floating point, got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.size(0) == classes, "cross_entropy: expected ",
                    argument, " with one value per class, shape [", classes, "], got ",
                    tensor.sizes());
  check_device(argument, tensor, input);
}

void check_fraction(const char* argument, double value) {
  TORCH_CHECK_VALUE(value >= 0 && value <= 1, "cross_entropy: expected ", argument,
                    " in [0, 1], got ", value);
}

// One value per sample (N) or per row (N, d1, ...).
void check_per_row(const char* argument, const at::Tensor& tensor, const at::Tensor& input,
                   at::IntArrayRef rows, bool read_values) {
  TORCH_CHECK_TYPE(at::isFloatingType(tensor.scalar_type()), "cross_entropy: expected ", argument,
                   " to be floating point, got ", tensor.scalar_type());
  const bool per_sample = !rows.empty() && tensor.dim() == 1 && tensor.size(0) == rows[0];
  TORCH_CHECK_VALUE(per_sample || tensor.sizes() == rows, "cross_entropy: expected ", argument,
                    " with one value per sample or row, shape ",
                    rows.empty() ? rows : rows.slice(0, 1), " or ", rows, ", got ", tensor.sizes());
  check_device(argument, tensor, input);
  if (read_values && tensor.numel() > 0) {
    TORCH_CHECK_VALUE(at::all(tensor.ge(0).logical_and(tensor.le(1))).item<bool>(),
                      "cross_entropy: expected every ", argument, " in [0, 1]");
  }
}

void check_class_indices(const char* argument, const at::Tensor& target, const at::Tensor& input,
                         at::IntArrayRef rows) {
  TORCH_CHECK_TYPE(is_class_index(target), "cross_entropy: expected ", argument,
                   " to hold class indices (an integer dtype) of shape ", rows,
                   " or, as target, class probabilities of the shape of input ", input.sizes(),
                   ", got ", target.scalar_type(), " of shape ", target.sizes());
  TORCH_CHECK_VALUE(target.sizes() == rows, "cross_entropy: expected ", argument, " of shape ",
                    rows, " for input of shape ", input.sizes(), ", got ", target.sizes());
  check_device(argument, target, input);
}

}  // namespace

std::vector<int64_t> row_sizes(const at::Tensor& input) {
  auto sizes = input.sizes().vec();
  sizes.erase(sizes.begin() + (sizes.size() > 1 ? 1 : 0));
  return sizes;
}

void check_arguments(const at::Tensor& input, const at::Tensor& target,
                     const CrossEntropyOptions& o) {
  TORCH_CHECK_TYPE(at::isFloatingType(input.scalar_type()),
                   "cross_entropy: expected floating-point input, got ", input.scalar_type());
  TORCH_CHECK_VALUE(input.dim() >= 1,
                    "cross_entropy: expected input of shape (C), (N, C) or (N, C, d1, ...), got a "
                    "tensor without dimensions");
  const int64_t classes = input.size(input.dim() > 1 ? 1 : 0);
  TORCH_CHECK_VALUE(classes > 0, "cross_entropy: expected at least one class, got input of shape ",
                    input.sizes());
  const auto rows = row_sizes(input);
  if (target.sizes() == input.sizes() && !is_class_index(target)) {
    TORCH_CHECK_TYPE(at::isFloatingType(target.scalar_type()),
                     "cross_entropy: expected floating-point class probabilities in target, got ",
                     target.scalar_type());
    TORCH_CHECK_VALUE(o.ignore_index < 0,
                      "cross_entropy: ignore_index has no meaning for class probabilities, got ",
                      o.ignore_index);
    TORCH_CHECK_VALUE(!o.target_b,
                      "cross_entropy: expected class indices in both targets of mixup, got "
                      "probabilities");
    check_device("target", target, input);
  } else {
    check_class_indices("target", target, input, rows);
    if (o.target_b) check_class_indices("target_b", *o.target_b, input, rows);
  }
  TORCH_CHECK_VALUE(o.reduction == "mean" || o.reduction == "sum" || o.reduction == "none",
                    "cross_entropy: expected reduction to be 'mean', 'sum' or 'none', got '",
                    o.reduction, "'");
  const auto smoothing = smoothing_from(o.smoothing);
  TORCH_CHECK_VALUE(
      classes > 1 || (smoothing != Smoothing::kOthers && smoothing != Smoothing::kLsr),
      "cross_entropy: expected two classes or more for smoothing='", o.smoothing,
      "', got input of shape ", input.sizes());
  TORCH_CHECK_VALUE(o.prior.has_value() == (smoothing == Smoothing::kPrior),
                    "cross_entropy: expected prior with smoothing='prior' and with no other, got "
                    "smoothing='",
                    o.smoothing, "'");
  // Values on a GPU are looked at only where a synchronisation was asked for.
  const bool read_values = input.device().is_cpu() || o.validate;
  if (o.weight) check_per_class("weight", *o.weight, input, classes);
  if (o.prior) check_per_class("smoothing", *o.prior, input, classes);
  check_fraction("label_smoothing", o.label_smoothing);
  check_fraction("lam", o.lam);
  if (o.row_smoothing) {
    check_per_row("label_smoothing", *o.row_smoothing, input, rows, read_values);
  }
  if (o.row_lam) check_per_row("lam", *o.row_lam, input, rows, read_values);
  TORCH_CHECK_VALUE(std::isfinite(o.z_loss) && o.z_loss >= 0,
                    "cross_entropy: expected z_loss >= 0, got ", o.z_loss);
  TORCH_CHECK_VALUE(std::isfinite(o.logit_scale),
                    "cross_entropy: expected a finite logit_scale, got ", o.logit_scale);
  TORCH_CHECK_VALUE(!o.softcap || (std::isfinite(*o.softcap) && *o.softcap > 0),
                    "cross_entropy: expected softcap > 0, got ", o.softcap.value_or(0));
  TORCH_CHECK_TYPE(!o.out_dtype || at::isFloatingType(*o.out_dtype),
                   "cross_entropy: expected a floating-point out_dtype, got ",
                   o.out_dtype.value_or(at::kFloat));
}

void check_target_range(const at::Tensor& target, int64_t classes, int64_t ignore_index,
                        const char* argument) {
  const int64_t rows = target.numel();
  const int64_t* values = target.const_data_ptr<int64_t>();
  int64_t row = 0;
  while (row < rows && (static_cast<uint64_t>(values[row]) < static_cast<uint64_t>(classes) ||
                        values[row] == ignore_index)) {
    ++row;
  }
  TORCH_CHECK_INDEX(row == rows, "cross_entropy: ", argument, " ", row < rows ? values[row] : 0,
                    " of row ", row, " is out of range for ", classes, " classes");
}

}  // namespace pyext
