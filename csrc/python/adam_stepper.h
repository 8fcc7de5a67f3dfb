// The object behind pyext.optim.Adam: one step of all parameters, without Python work per
// parameter.
#pragma once

#include <pybind11/pybind11.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "adam_records.h"

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
  using Record = AdamRecords::Record;

  // Records of this step, on one device.
  struct Batch {
    at::Device device;
    std::vector<Record*> records = {};
    AdamProblem problem = {};
    double grad_factor = 1;  // loss scale and clipping, where they are known on the CPU
    std::vector<AdamTensor> tensors = {};
    std::vector<AdamGroup> groups = {};
    std::vector<std::pair<int, double>> groups_of = {};  // group and step count of each of `groups`
    std::vector<at::Tensor> held = {};                   // what pointers of the problem point into

    const float* on_device(const at::Tensor& scalar) {
      return held.emplace_back(scalar.to(device, at::kFloat)).const_data_ptr<float>();
    }
  };

  void run(Batch& batch, const std::optional<at::Tensor>& grad_scale,
           const std::optional<at::Tensor>& found_inf);
  // Measures the gradients, to clip them; false where nothing is to be changed.
  bool take_norm(Batch& batch);
  at::Tensor norm_over_processes(const Batch& batch) const;
  // The coefficients of every group and step count.
  void form_groups(Batch& batch) const;
  static void count(Batch& batch);
  void update(const Batch& batch);
  void announce_all(const Batch& batch) const;

  const std::string name_;
  const double max_grad_norm_;
  const bool zero_grad_, skip_nonfinite_, telemetry_asked_;
  const uint64_t seed_;
  int64_t skipped_ = 0;
  std::optional<at::Tensor> grad_norm_, telemetry_;
  AdamRecords records_;
};

void bind_adam_stepper(pybind11::module_& m);

}  // namespace pyext
