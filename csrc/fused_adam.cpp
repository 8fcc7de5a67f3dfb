// fused_adam: from lists of tensors to one step, and the device entries. The optimizer of
// csrc/python steps without them, on the same kernels.
#include "fused_adam.h"

#include <ATen/DeviceGuard.h>
#include <c10/util/irange.h>
#include <torch/library.h>

#include "fused_adam_layout.h"

namespace pyext {

KernelStub<void(const AdamProblem&, AdamTelemetry*)> fused_adam_stub("fused_adam");
KernelStub<void(const AdamProblem&, AdamNorm*)> fused_adam_norm_stub("fused_adam");

namespace {

const float* scalar_on_device(const char* name, const at::Tensor& tensor, at::Device device) {
  TORCH_CHECK_VALUE(
      tensor.numel() == 1 && tensor.scalar_type() == at::kFloat && tensor.device() == device,
      "fused_adam: expected ", name, " to be one float32 value on ", device, ", got ",
      tensor.scalar_type(), " of shape ", tensor.sizes(), " on ", tensor.device());
  return tensor.const_data_ptr<float>();
}

void check_lengths(const char* name, size_t length, size_t expected) {
  TORCH_CHECK_VALUE(length == expected, "fused_adam: expected ", expected, " tensors in ", name,
                    ", one per parameter, got ", length);
}

void fused_adam_in_place_entry(at::TensorList self, at::TensorList grads, at::TensorList exp_avgs,
                               at::TensorList exp_avg_sqs, at::TensorList max_exp_avg_sqs,
                               at::TensorList state_steps, double lr, double beta1, double beta2,
                               double weight_decay, double eps, bool amsgrad, bool maximize,
                               bool decoupled_weight_decay,
                               const std::optional<at::Tensor>& lr_tensor,
                               const std::optional<at::Tensor>& grad_scale,
                               const std::optional<at::Tensor>& found_inf) {
  check_lengths("grads", grads.size(), self.size());
  check_lengths("exp_avgs", exp_avgs.size(), self.size());
  check_lengths("exp_avg_sqs", exp_avg_sqs.size(), self.size());
  check_lengths("max_exp_avg_sqs", max_exp_avg_sqs.size(), amsgrad ? self.size() : 0);
  check_lengths("state_steps", state_steps.size(), self.size());
  if (self.empty()) return;
  const auto device = self[0].device();
  const at::DeviceGuard guard(device);
  const bool on_cpu = device.is_cpu();

  AdamOptions options{lr,      beta1,   beta2, eps, weight_decay, decoupled_weight_decay,
                      amsgrad, maximize};
  AdamProblem problem;
  const float* device_lr = nullptr;
  if (lr_tensor) {
    if (lr_tensor->is_cpu()) {
      options.lr = lr_tensor->item<double>();
      options.float32_lr = lr_tensor->scalar_type() == at::kFloat;
    } else {
      device_lr = scalar_on_device("lr_tensor", *lr_tensor, device);
    }
  }
  double grad_factor = 1;
  if (grad_scale) {
    const auto* scale = scalar_on_device("grad_scale", *grad_scale, device);
    if (on_cpu) {
      grad_factor = 1 / double{*scale};
    } else {
      problem.grad_scale = scale;
    }
  }
  if (found_inf) {
    const auto* found = scalar_on_device("found_inf", *found_inf, device);
    if (on_cpu && *found != 0) return;
    if (!on_cpu) problem.found_inf = found;
  }

  std::deque<AdamOperand::Strides> strides;
  std::vector<AdamTensor> tensors;
  std::vector<AdamGroup> groups;
  std::vector<double> steps;         // of each group
  std::vector<at::Tensor> resolved;  // gradients that were conjugate or negative views
  tensors.reserve(self.size());
  for (const auto i : c10::irange(self.size())) {
    auto grad = grads[i];
    if (grad.layout() == at::kStrided && (grad.is_conj() || grad.is_neg())) {
      grad = resolved.emplace_back(grad.resolve_conj().resolve_neg());
    }
    AdamTensors of_one{self[i], grad, exp_avgs[i], exp_avg_sqs[i]};
    if (amsgrad) of_one[AdamTensor::kMaxExpAvgSq] = max_exp_avg_sqs[i];
    const AdamName name{"fused_adam", -1, static_cast<int64_t>(i)};
    TORCH_CHECK_VALUE(self[i].device() == device, name, ": expected on ", device,
                      " as the first one is, got ", self[i].device());
    check_adam_tensors(of_one, name);
    tensors.push_back(laid_out(of_one, strides));
    const auto& step = state_steps[i];
    double count = 1;
    if (step.is_cpu()) {
      count = step.item<double>();
    } else {
      tensors.back().device_step = scalar_on_device("state_steps", step, device);
    }
    if (groups.empty() || steps.back() != count) {
      groups.push_back(
          {options, adam_coefficients<double>(options, options.lr, count, grad_factor), device_lr});
      steps.push_back(count);
    }
    tensors.back().step = static_cast<uint32_t>(count);
    tensors.back().group = static_cast<int32_t>(groups.size()) - 1;
  }
  problem.tensors = tensors;
  problem.groups = groups;
  fused_adam_stub(device.type(), problem, nullptr);
}

std::vector<at::Tensor> copies(at::TensorList tensors) {
  std::vector<at::Tensor> result;
  result.reserve(tensors.size());
  for (const auto& tensor : tensors) result.push_back(tensor.clone());
  return result;
}

std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>, std::vector<at::Tensor>,
           std::vector<at::Tensor>>
fused_adam_entry(at::TensorList self, at::TensorList grads, at::TensorList exp_avgs,
                 at::TensorList exp_avg_sqs, at::TensorList max_exp_avg_sqs,
                 at::TensorList state_steps, double lr, double beta1, double beta2,
                 double weight_decay, double eps, bool amsgrad, bool maximize,
                 bool decoupled_weight_decay, const std::optional<at::Tensor>& lr_tensor,
                 const std::optional<at::Tensor>& grad_scale,
                 const std::optional<at::Tensor>& found_inf) {
  auto params = copies(self), m = copies(exp_avgs), v = copies(exp_avg_sqs),
       v_max = copies(max_exp_avg_sqs);
  fused_adam_in_place_entry(params, grads, m, v, v_max, state_steps, lr, beta1, beta2, weight_decay,
                            eps, amsgrad, maximize, decoupled_weight_decay, lr_tensor, grad_scale,
                            found_inf);
  return {std::move(params), std::move(m), std::move(v), std::move(v_max)};
}

void register_fused_adam(torch::Library& m) {
  m.impl("fused_adam_", fused_adam_in_place_entry);
  m.impl("fused_adam", fused_adam_entry);
}

TORCH_LIBRARY_IMPL(pyext, CPU, m) { register_fused_adam(m); }
TORCH_LIBRARY_IMPL(pyext, CUDA, m) { register_fused_adam(m); }
// For their message: a sparse gradient among the others comes by these keys.
TORCH_LIBRARY_IMPL(pyext, SparseCPU, m) { register_fused_adam(m); }
TORCH_LIBRARY_IMPL(pyext, SparseCUDA, m) { register_fused_adam(m); }

}  // namespace
}  // namespace pyext
