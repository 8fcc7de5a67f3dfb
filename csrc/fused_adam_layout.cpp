// The common order of a parameter's elements is that of its memory where it is dense, so that
// transposed and channels_last parameters are walked straight; else that of its indices.
#include "fused_adam_layout.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/view_as_real.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <numeric>

namespace pyext {
namespace {

using T = AdamTensor;

const char* operand_name(int operand) {
  constexpr std::array<const char*, T::kOperands> names{
      "the parameter", "its gradient", "exp_avg",       "exp_avg_sq",       "max_exp_avg_sq",
      "master",        "ema",          "exp_avg_scale", "exp_avg_sq_scale", "max_exp_avg_sq_scale"};
  return names[operand];
}

bool is_number(at::ScalarType dtype) {  // of the kinds that the kernels compute with
  switch (dtype) {
    case at::kFloat:
    case at::kDouble:
    case at::kBFloat16:
    case at::kHalf:
    case at::kComplexFloat:
    case at::kComplexDouble:
      return true;
    default:
      return false;
  }
}

bool is_scale(int operand) { return operand >= T::kExpAvgScale; }

// A complex tensor is two real ones.
at::Tensor as_real(const at::Tensor& tensor) {
  return tensor.is_complex() ? at::view_as_real(tensor) : tensor;
}

// Axes from the outermost to the innermost.
std::vector<int64_t> order_of(const at::Tensor& param) {
  std::vector<int64_t> order(param.dim());
  std::iota(order.begin(), order.end(), 0);
  if (param.is_non_overlapping_and_dense()) {
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return param.stride(a) > param.stride(b); });
  }
  return order;
}

// Where a tensor's elements lie in this order, neighbouring axes merged.
AdamOperand::Strides strides_of(const at::Tensor& tensor, const std::vector<int64_t>& order) {
  AdamOperand::Strides result;
  for (const int64_t axis : order) {
    const int64_t size = tensor.size(axis), stride = tensor.stride(axis);
    if (size == 1) continue;
    const int last = result.dims - 1;
    if (last >= 0 && result.strides[last] == stride * size) {
      result.sizes[last] *= size;
      result.strides[last] = stride;
      continue;
    }
    TORCH_CHECK_NOT_IMPLEMENTED(result.dims < AdamOperand::kMaxDims, "fused_adam: a tensor of ",
                                tensor.dim(), " axes that cannot be merged to fewer than ",
                                AdamOperand::kMaxDims + 1);
    result.sizes[result.dims] = size;
    result.strides[result.dims++] = stride;
  }
  return result;
}

bool is_straight(const AdamOperand::Strides& s) {
  return s.dims == 0 || (s.dims == 1 && s.strides[0] == 1);
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const AdamName& name) {
  out << name.caller << ": ";
  if (name.group >= 0) out << "group " << name.group << ", ";
  return out << "parameter " << name.index;
}

void check_adam_tensors(const AdamTensors& tensors, const AdamName& name) {
  const auto& param = tensors[T::kParam];
  TORCH_CHECK_NOT_IMPLEMENTED(param.is_cpu() || param.is_cuda(), name,
                              ": expected a parameter on the CPU or on CUDA, got ", param.device());
  TORCH_CHECK_TYPE(is_number(param.scalar_type()), name,
                   ": expected a floating-point or complex dtype, got ", param.scalar_type());
  for (const auto k : c10::irange(static_cast<int>(T::kOperands))) {
    const auto& tensor = tensors[k];
    if (!tensor.defined()) continue;
    TORCH_CHECK(tensor.layout() == at::kStrided, name, ": ", operand_name(k), " is sparse (",
                tensor.layout(),
                "). Adam does not support sparse gradients, please consider SparseAdam instead");
    TORCH_CHECK_VALUE(tensor.device() == param.device(), name, ": ", operand_name(k),
                      " is expected on ", param.device(), " as the parameter is, got ",
                      tensor.device());
    if (is_scale(k)) {
      const int64_t blocks = (param.numel() + kCodeBlock - 1) / kCodeBlock;
      TORCH_CHECK_VALUE(
          tensor.scalar_type() == at::kFloat && tensor.is_contiguous() && tensor.numel() == blocks,
          name, ": ", operand_name(k), " is expected to be ", blocks,
          " contiguous float32 values, got ", tensor.scalar_type(), " of shape ", tensor.sizes());
      continue;
    }
    TORCH_CHECK_VALUE(tensor.sizes() == param.sizes(), name, ": ", operand_name(k),
                      " is expected to have the shape ", param.sizes(), " of the parameter, got ",
                      tensor.sizes());
    if (k != T::kMaster && k != T::kEma) {
      const bool coded = !param.is_complex() && k != T::kGrad && k != T::kParam &&
                         tensor.scalar_type() == (k == T::kExpAvg ? at::kChar : at::kByte);
      TORCH_CHECK_TYPE(
          coded || (tensor.is_complex() == param.is_complex() && is_number(tensor.scalar_type())),
          name, ": ", operand_name(k), " cannot be ", tensor.scalar_type(),
          " where the parameter is ", param.scalar_type());
      if (coded) {
        const auto& scale = tensors[T::kExpAvgScale + (k - T::kExpAvg)];
        TORCH_CHECK_VALUE(scale.defined(), name, ": ", operand_name(k), " of 8 bits has no scales");
        TORCH_CHECK_VALUE(tensor.is_contiguous(), name, ": ", operand_name(k),
                          " of 8 bits is expected to be contiguous");
      }
    }
    if (k != T::kGrad) at::assert_no_internal_overlap(tensor);
  }
  for (const auto k : {T::kGrad, T::kExpAvg, T::kExpAvgSq}) {
    TORCH_CHECK_VALUE(tensors[k].defined(), name, ": ", operand_name(k), " is missing");
  }
}

AdamTensor laid_out(const AdamTensors& tensors, std::deque<AdamOperand::Strides>& strides) {
  AdamTensor result;
  const auto param = as_real(tensors[T::kParam]);
  result.numel = param.numel();
  // Codes are counted in the order of indices.
  auto order = order_of(param);
  const auto moment = tensors[T::kExpAvg].scalar_type();
  if (moment == at::kChar) std::sort(order.begin(), order.end());
  for (const auto k : c10::irange(static_cast<int>(T::kOperands))) {
    if (!tensors[k].defined()) continue;
    const auto tensor = as_real(tensors[k]);
    auto& operand = result.operands[k];
    operand.data = tensor.data_ptr();
    operand.dtype = tensor.scalar_type();
    if (is_scale(k)) continue;
    const auto lies = strides_of(tensor, order);
    if (is_straight(lies)) continue;
    strides.push_back(lies);
    operand.strided = &strides.back();
  }
  return result;
}

}  // namespace pyext
