// A step of Adam, from what the optimizer holds to the kernels and back.
#include "adam_stepper.h"

#include <ATen/DeviceGuard.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <c10/util/irange.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>

#include <cmath>

namespace py = pybind11;

namespace pyext {
namespace {

using T = AdamTensor;

double read_count(const at::Tensor& step) {
  if (step.scalar_type() == at::kFloat) return *step.const_data_ptr<float>();
  return step.item<double>();
}

void write_count(const at::Tensor& step, double count) {
  if (step.scalar_type() == at::kFloat) {
    *step.mutable_data_ptr<float>() = static_cast<float>(count);
  } else {
    step.fill_(count);
  }
}

void announce(const at::Tensor& written) {
  if (!written.is_inference()) written.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

AdamStepper::AdamStepper(std::string name, std::optional<double> max_grad_norm, bool zero_grad,
                         bool skip_nonfinite, bool telemetry, uint64_t seed)
    : name_(std::move(name)),
      max_grad_norm_(max_grad_norm.value_or(0)),
      zero_grad_(zero_grad),
      skip_nonfinite_(skip_nonfinite),
      telemetry_asked_(telemetry),
      seed_(seed) {}

py::list AdamStepper::step(const py::list& groups, const py::dict& state,
                           const std::optional<at::Tensor>& grad_scale,
                           const std::optional<at::Tensor>& found_inf) {
  const at::NoGradGuard no_grad;
  records_.update(groups, state);
  py::list missing;
  std::vector<Batch> batches;
  for (auto& record : records_.all()) {
    const at::Tensor& grad = record.param.unsafeGetTensorImpl()->grad();
    if (!grad.defined()) continue;
    const auto& group = records_.group_of(record);
    const bool complete = record.has_state &&
                          (!group.options.amsgrad || record.states[T::kMaxExpAvgSq].defined()) &&
                          (!group.has_ema || record.states[T::kEma].defined());
    if (!complete) {
      missing.append(py::make_tuple(record.group, record.index));
      continue;
    }
    if (!missing.empty()) continue;
    records_.lay_out(record, grad, name_.c_str(), zero_grad_);
    const auto device = record.param.device();
    auto batch = std::find_if(batches.begin(), batches.end(),
                              [&](const auto& b) { return b.device == device; });
    if (batch == batches.end()) batch = batches.insert(batch, Batch{device});
    batch->records.push_back(&record);
  }
  if (!missing.empty()) return missing;
  for (auto& batch : batches) run(batch, grad_scale, found_inf);
  return missing;
}

// The norm where each process has a part of the gradients: the sum of squares, and 0 or NaN.
at::Tensor AdamStepper::norm_over_processes(const Batch& batch) const {
  py::list grads;
  for (const Record* const record : batch.records) {
    grads.append(py::cast(record->param.unsafeGetTensorImpl()->grad()));
  }
  py::object total = py::module_::import("torch.nn.utils").attr("get_total_norm")(grads);
  if (py::hasattr(total, "full_tensor")) total = total.attr("full_tensor")();
  const auto norm = total.cast<at::Tensor>().to(at::kDouble);
  return at::stack({norm * norm, norm * 0});
}

void AdamStepper::run(Batch& batch, const std::optional<at::Tensor>& grad_scale,
                      const std::optional<at::Tensor>& found_inf) {
  RECORD_FUNCTION("pyext::fused_adam_", c10::ArrayRef<const c10::IValue>{});
  const at::DeviceGuard device_guard(batch.device);
  const bool on_cpu = batch.device.is_cpu();
  auto& problem = batch.problem;
  problem.seed = seed_;
  problem.zero_grad = zero_grad_;
  if (grad_scale && on_cpu) batch.grad_factor = 1 / grad_scale->item<double>();
  if (grad_scale && !on_cpu) problem.grad_scale = batch.on_device(*grad_scale);
  if (found_inf && on_cpu && found_inf->item<double>() != 0) return;
  if (found_inf && !on_cpu) problem.found_inf = batch.on_device(*found_inf);
  batch.tensors.reserve(batch.records.size());
  for (Record* const record : batch.records) batch.tensors.push_back(record->laid);
  problem.tensors = batch.tensors;
  if ((max_grad_norm_ > 0 || skip_nonfinite_) && !take_norm(batch)) return;
  form_groups(batch);
  // Nothing raises from here on.
  count(batch);
  update(batch);
  announce_all(batch);
}

bool AdamStepper::take_norm(Batch& batch) {
  auto& problem = batch.problem;
  problem.max_grad_norm = max_grad_norm_;
  problem.skip_nonfinite = skip_nonfinite_;
  const bool spread = std::any_of(batch.records.begin(), batch.records.end(),
                                  [](const Record* record) { return record->is_wrapper; });
  auto sums = spread ? norm_over_processes(batch)
                     : at::zeros({2}, at::TensorOptions(batch.device).dtype(at::kDouble));
  batch.held.push_back(sums);
  auto* const data = reinterpret_cast<AdamNorm*>(sums.mutable_data_ptr<double>());
  if (!spread) fused_adam_norm_stub(batch.device.type(), problem, data);
  if (!batch.device.is_cpu()) {
    problem.norm = data;
    grad_norm_ = sums[0].sqrt().to(at::kFloat);
    if (problem.grad_scale != nullptr) grad_norm_ = *grad_norm_ / batch.held.front();
    return true;
  }
  if (skip_nonfinite_ && std::isnan(data->poison)) {
    ++skipped_;
    return false;
  }
  if (max_grad_norm_ > 0) {
    const double norm = std::sqrt(data->square_sum) * batch.grad_factor;
    grad_norm_ = at::scalar_tensor(norm, at::kFloat);
    batch.grad_factor *= clip_factor(max_grad_norm_, norm);
  }
  return true;
}

void AdamStepper::form_groups(Batch& batch) const {
  const bool on_cpu = batch.device.is_cpu();
  for (const auto i : c10::irange(batch.records.size())) {
    const Record& record = *batch.records[i];
    const auto& group = records_.group_of(record);
    auto& tensor = batch.tensors[i];
    const double count = record.step.is_cpu() ? read_count(record.step) + 1 : 0;
    auto known =
        std::find(batch.groups_of.rbegin(), batch.groups_of.rend(), std::pair{record.group, count});
    if (known == batch.groups_of.rend()) {
      batch.groups_of.emplace_back(record.group, count);
      const bool lr_on_device = group.device_lr && !on_cpu;
      const double lr =
          group.device_lr && on_cpu ? group.device_lr->item<double>() : group.options.lr;
      batch.groups.push_back(
          {group.options, adam_coefficients<double>(group.options, lr, count, batch.grad_factor),
           lr_on_device ? batch.on_device(*group.device_lr) : nullptr});
      known = batch.groups_of.rbegin();
    }
    tensor.group = static_cast<int32_t>(batch.groups_of.rend() - known) - 1;
    tensor.step = static_cast<uint32_t>(count);
  }
  batch.problem.groups = batch.groups;
}

void AdamStepper::count(Batch& batch) {
  std::vector<at::Tensor> device_steps;
  for (const auto i : c10::irange(batch.records.size())) {
    const auto& step = batch.records[i]->step;
    if (step.is_cpu()) {
      write_count(step, batch.groups_of[batch.tensors[i].group].second);
    } else {
      device_steps.push_back(step);
    }
  }
  if (!device_steps.empty()) at::_foreach_add_(device_steps, 1);
  for (const auto i : c10::irange(batch.records.size())) {
    const auto& step = batch.records[i]->step;
    if (!step.is_cpu()) batch.tensors[i].device_step = batch.on_device(step);
  }
}

void AdamStepper::update(const Batch& batch) {
  const bool on_cpu = batch.device.is_cpu();
  AdamTelemetry sums;
  at::Tensor device_sums;
  AdamTelemetry* to = telemetry_asked_ ? &sums : nullptr;
  if (telemetry_asked_ && !on_cpu) {
    device_sums = at::zeros({4}, at::TensorOptions(batch.device).dtype(at::kDouble));
    to = reinterpret_cast<AdamTelemetry*>(device_sums.mutable_data_ptr<double>());
  }
  {
    const py::gil_scoped_release no_gil;
    fused_adam_stub(batch.device.type(), batch.problem, to);
  }
  if (telemetry_asked_) {
    telemetry_ =
        on_cpu ? at::tensor({sums.grad_square, sums.update_square, sums.param_square, sums.lost},
                            at::kDouble)
               : device_sums;
  }
}

void AdamStepper::announce_all(const Batch& batch) const {
  for (const Record* const record : batch.records) {
    announce(record->param);
    announce(record->step);
    for (const auto& state : record->states) {
      if (state.defined()) announce(state);
    }
    if (zero_grad_) {
      const at::Tensor& grad = record->param.unsafeGetTensorImpl()->grad();
      if (record->resolved_grad.defined()) grad.zero_();
      announce(grad);
    }
  }
}

std::optional<std::tuple<double, double, double, int64_t>> AdamStepper::telemetry() const {
  if (!telemetry_) return std::nullopt;
  const auto sums = telemetry_->cpu();
  const auto* const x = sums.const_data_ptr<double>();
  return std::tuple{std::sqrt(x[0]), std::sqrt(x[1]), std::sqrt(x[2]), static_cast<int64_t>(x[3])};
}

void bind_adam_stepper(py::module_& m) {
  py::class_<AdamStepper>(m, "AdamStepper", "The object behind pyext.optim.Adam.")
      .def(py::init<std::string, std::optional<double>, bool, bool, bool, uint64_t>(),
           py::arg("name"), py::kw_only(), py::arg("max_grad_norm"), py::arg("zero_grad"),
           py::arg("skip_nonfinite"), py::arg("telemetry"), py::arg("seed"))
      .def("step", torch::wrap_pybind_function(&AdamStepper::step), py::arg("groups"),
           py::arg("state"), py::arg("grad_scale"), py::arg("found_inf"))
      .def_property_readonly("grad_norm", &AdamStepper::grad_norm)
      .def_property_readonly("telemetry", &AdamStepper::telemetry)
      .def_property_readonly("skipped_steps", &AdamStepper::skipped_steps);
}

}  // namespace pyext
