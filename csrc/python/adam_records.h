// What an optimizer's param_groups and state hold, as C++ finds it without Python work per
// parameter. They stay the truth: at each step they are compared with what is held, by identity,
// and read again where they differ.
#pragma once

#include <pybind11/pybind11.h>
#include <torch/csrc/utils/pybind.h>

#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "fused_adam_layout.h"

namespace pyext {

// Hidden, as pybind11's types are that it holds.
class [[gnu::visibility("hidden")]] AdamRecords {
 public:
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

  // Reads what has changed, and the options of all groups: schedulers write them.
  void update(const pybind11::list& groups, const pybind11::dict& state);

  // Brings record.laid up to date. Raises where the tensors do not fit together, or where a
  // gradient that is written to overlaps itself.
  void lay_out(Record& record, const at::Tensor& grad, const char* optimizer,
               bool writes_grad) const;

  const Group& group_of(const Record& record) const { return groups_[record.group]; }
  std::deque<Record>& all() { return records_; }

 private:
  bool is_as_read(const pybind11::list& groups, const pybind11::dict& state) const;
  void read(const pybind11::list& groups, const pybind11::dict& state);
  void read_state(Record& record, const pybind11::dict& state);
  void read_options(Group& group) const;

  std::vector<Group> groups_;
  std::deque<Record> records_;
  // The entries of the optimizer's state and of its parameters' states, in order.
  std::vector<std::pair<pybind11::object, pybind11::object>> state_seen_;
  std::vector<pybind11::object> values_seen_;
};

}  // namespace pyext
