// The object behind pyext.optim.Adam: it holds what it knows of parameters and states, and steps
// without Python work per parameter. The optimizer's param_groups and state stay the truth; at each
// step they are compared with what is held, by identity, and read again where they differ.
#pragma once

#include <pybind11/pybind11.h>
#include <torch/csrc/utils/pybind.h>

#include <deque>
#include <vector>

#include "fused_adam_layout.h"

namespace pyext {

// Hidden, as pybind11's types are that it holds.
class [[gnu::visibility("hidden")]] AdamStepper {
 public:
  AdamStepper(std::string name, std::optional<double> max_grad_norm, bool zero_grad,
              bool skip_nonfinite, bool telemetry, uint64_t seed);

  // One step of everything that has a gradient. Where a parameter has a gradient and no complete
  // state, nothing is done, and those parameters are returned as pairs of group and index.
  pybind11::list step(const pybind11::list& groups, const pybind11::dict& state,
                      const std::optional<at::Tensor>& grad_scale,
                      const std::optional<at::Tensor>& found_inf);

  // Of the last step.
  std::optional<at::Tensor> grad_norm() const { return grad_norm_; }
  std::optional<std::tuple<double, double, double, int64_t>> telemetry() const;
  int64_t skipped_steps() const { return skipped_; }

 private:
  struct Group {
    pybind11::object dict;
    pybind11::object moments, master;  // as when the states were read
    std::vector<pybind11::object> params;
    AdamOptions options;
    std::optional<at::Tensor> device_lr;
    double ema_weight = 0;
    bool has_ema = false;
    bool stochastic_moments = false;
  };

  struct Record {
    int group = 0, index = 0;
    at::Tensor param;
    bool is_wrapper = false;  // DTensor and the like: the step is that of the local tensor
    bool has_state = false;
    AdamTensors states;  // kParam and kGrad are of the step
    at::Tensor step;
    AdamMaster master = AdamMaster::kNone;
    // What was laid out, and of what.
    AdamTensor laid;
    std::deque<AdamOperand::Strides> strides;
    std::vector<int64_t> sizes_and_strides;
    bool is_laid = false;
    at::Tensor resolved_grad;  // of a conjugate or negative view
  };

  // Records of this step, on one device.
  struct Batch {
    std::vector<Record*> records;
    std::vector<AdamTensor> tensors;
    std::vector<AdamGroup> groups;
    std::vector<std::pair<int, double>> groups_of;  // group and step count of each of `groups`
  };

  bool is_as_read(const pybind11::list& groups, const pybind11::dict& state) const;
  void read(const pybind11::list& groups, const pybind11::dict& state);
  void read_state(Record& record, const pybind11::dict& state);
  void read_options(Group& group) const;
  void prepare(Record& record, const at::Tensor& grad);
  AdamName name_of(const Record& record) const;
  at::Tensor norm_over_processes(const Batch& batch) const;
  void run(const at::Device& device, Batch& batch, const std::optional<at::Tensor>& grad_scale,
           const std::optional<at::Tensor>& found_inf);

  const std::string name_;
  const double max_grad_norm_;
  const bool zero_grad_, skip_nonfinite_, telemetry_asked_;
  const uint64_t seed_;
  int64_t skipped_ = 0;
  std::optional<at::Tensor> grad_norm_, telemetry_;

  std::vector<Group> groups_;
  std::deque<Record> records_;
  // The entries of the optimizer's state and of its parameters' states, in order.
  std::vector<std::pair<pybind11::object, pybind11::object>> state_seen_;
  std::vector<pybind11::object> values_seen_;
};

void bind_adam_stepper(pybind11::module_& m);

}  // namespace pyext
