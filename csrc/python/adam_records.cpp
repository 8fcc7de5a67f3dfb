// Reading param_groups and state of an optimizer, and laying out what they hold for the kernels.
#include "adam_records.h"

#include <ATen/MemoryOverlap.h>
#include <c10/util/irange.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <string>

namespace py = pybind11;

namespace pyext {
namespace {

using T = AdamTensor;

// The key of each state of a parameter; the parameter and its gradient have none.
constexpr std::array<const char*, T::kOperands> kStateKeys{
    nullptr,  nullptr, "exp_avg",       "exp_avg_sq",       "max_exp_avg_sq",
    "master", "ema",   "exp_avg_scale", "exp_avg_sq_scale", "max_exp_avg_sq_scale"};

// Keys are looked up every step: the strings are made once and never freed.
PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }
struct Keys {
  PyObject *params = interned("params"), *lr = interned("lr"), *betas = interned("betas"),
           *eps = interned("eps"), *weight_decay = interned("weight_decay"),
           *decoupled = interned("decoupled_weight_decay"), *amsgrad = interned("amsgrad"),
           *maximize = interned("maximize"), *moments = interned("moments"),
           *master = interned("master"), *ema_decay = interned("ema_decay"),
           *step = interned("step");
  std::array<PyObject*, T::kOperands> states;
  Keys() {
    for (const auto k : c10::irange(static_cast<int>(T::kOperands))) {
      states[k] = kStateKeys[k] != nullptr ? interned(kStateKeys[k]) : nullptr;
    }
  }
};
const Keys& keys() {
  static const Keys* const result = new Keys;
  return *result;
}

PyObject* get(PyObject* dict, PyObject* key) {
  PyObject* const value = PyDict_GetItemWithError(dict, key);  // borrowed
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

PyObject* required(PyObject* dict, PyObject* key) {
  PyObject* const value = get(dict, key);
  if (value == nullptr) {
    PyErr_SetObject(PyExc_KeyError, key);
    throw py::error_already_set();
  }
  return value;
}

bool is_none(PyObject* value) { return value == nullptr || value == Py_None; }

double number(PyObject* value) {
  if (THPVariable_Check(value)) return THPVariable_Unpack(value).item<double>();
  const double result = PyFloat_AsDouble(value);
  if (result == -1 && PyErr_Occurred()) throw py::error_already_set();
  return result;
}

bool truth(PyObject* value) { return value != nullptr && PyObject_IsTrue(value) == 1; }

py::object borrowed(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

// The tensor that is in this process's memory.
at::Tensor local(const at::Tensor& tensor) {
  if (!tensor.unsafeGetTensorImpl()->is_python_dispatch()) return tensor;
  const auto object = py::cast(tensor);
  if (!py::hasattr(object, "to_local")) return tensor;
  return object.attr("to_local")().cast<at::Tensor>();
}

std::vector<int64_t> shape_of(const at::Tensor& tensor) {
  std::vector<int64_t> result(tensor.sizes().begin(), tensor.sizes().end());
  result.insert(result.end(), tensor.strides().begin(), tensor.strides().end());
  return result;
}

bool has_shape(const at::Tensor& tensor, const std::vector<int64_t>& shape) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  return shape.size() == 2 * sizes.size() &&
         std::equal(sizes.begin(), sizes.end(), shape.begin()) &&
         std::equal(strides.begin(), strides.end(), shape.begin() + sizes.size());
}

}  // namespace

// Whether groups, parameters and states are the objects that were read. Identity is enough: what
// is held here cannot be replaced at the same address.
bool AdamRecords::is_as_read(const py::list& groups, const py::dict& state) const {
  const auto& k = keys();
  if (groups.size() != groups_.size()) return false;
  for (const auto g : c10::irange(groups_.size())) {
    const Group& group = groups_[g];
    PyObject* const dict = PyList_GET_ITEM(groups.ptr(), g);
    if (dict != group.dict.ptr()) return false;
    PyObject* const params = required(dict, k.params);
    if (!PyList_Check(params) ||
        PyList_GET_SIZE(params) != static_cast<Py_ssize_t>(group.params.size())) {
      return false;
    }
    for (const auto i : c10::irange(group.params.size())) {
      if (PyList_GET_ITEM(params, i) != group.params[i].ptr()) return false;
    }
    const auto same = [&](PyObject* key, const py::object& seen) {
      PyObject* const value = get(dict, key);
      return (value == nullptr ? Py_None : value) == seen.ptr();
    };
    if (!same(k.moments, group.moments) || !same(k.master, group.master)) return false;
  }
  if (PyDict_Size(state.ptr()) != static_cast<Py_ssize_t>(state_seen_.size())) return false;
  Py_ssize_t at = 0;
  size_t entry = 0, value_at = 0;
  PyObject *key = nullptr, *value = nullptr;
  while (PyDict_Next(state.ptr(), &at, &key, &value)) {
    const auto& seen = state_seen_[entry++];
    if (key != seen.first.ptr() || value != seen.second.ptr()) return false;
    if (!PyDict_Check(value)) continue;
    Py_ssize_t at_inner = 0;
    PyObject *inner_key = nullptr, *inner_value = nullptr;
    while (PyDict_Next(value, &at_inner, &inner_key, &inner_value)) {
      if (value_at == values_seen_.size() || inner_value != values_seen_[value_at++].ptr()) {
        return false;
      }
    }
  }
  return value_at == values_seen_.size();
}

void AdamRecords::read(const py::list& groups, const py::dict& state) {
  const auto& k = keys();
  groups_.clear();
  records_.clear();
  state_seen_.clear();
  values_seen_.clear();
  for (const auto g : c10::irange(groups.size())) {
    PyObject* const dict = PyList_GET_ITEM(groups.ptr(), g);
    const auto or_none = [&](PyObject* key) {
      PyObject* const value = get(dict, key);
      return borrowed(value == nullptr ? Py_None : value);
    };
    auto& group = groups_.emplace_back();
    group.dict = borrowed(dict);
    group.moments = or_none(k.moments);
    group.master = or_none(k.master);
    int index = 0;
    for (const auto& param : py::list(borrowed(required(dict, k.params)))) {
      group.params.push_back(borrowed(param.ptr()));
      auto& record = records_.emplace_back();
      record.group = static_cast<int>(g);
      record.index = index++;
      record.param = THPVariable_Unpack(param.ptr());
      record.is_wrapper = record.param.unsafeGetTensorImpl()->is_python_dispatch();
      read_state(record, state);
    }
  }
  for (const auto& [key, value] : state) {
    state_seen_.emplace_back(borrowed(key.ptr()), borrowed(value.ptr()));
    if (!py::isinstance<py::dict>(value)) continue;
    for (const auto& inner : py::reinterpret_borrow<py::dict>(value)) {
      values_seen_.push_back(borrowed(inner.second.ptr()));
    }
  }
}

void AdamRecords::read_state(Record& record, const py::dict& state) {
  const auto& group = groups_[record.group];
  PyObject* const dict = get(state.ptr(), group.params[record.index].ptr());
  record.has_state = false;
  if (dict == nullptr || !PyDict_Check(dict)) return;
  const bool is_low =
      record.param.scalar_type() == at::kBFloat16 || record.param.scalar_type() == at::kHalf;
  if (is_low && !group.master.is_none()) {
    const auto master = group.master.cast<std::string>();
    record.master = master == "float32" ? AdamMaster::kFloat32
                    : master == "split" ? AdamMaster::kSplit
                    : master == "kahan" ? AdamMaster::kKahan
                                        : AdamMaster::kStochastic;
  }
  for (const auto k : c10::irange(static_cast<int>(T::kOperands))) {
    if (keys().states[k] == nullptr) continue;
    PyObject* const value = get(dict, keys().states[k]);
    if (value != nullptr && THPVariable_Check(value)) {
      record.states[k] = THPVariable_Unpack(value);
    }
  }
  PyObject* const step = get(dict, keys().step);
  if (step != nullptr && THPVariable_Check(step)) record.step = THPVariable_Unpack(step);
  const bool coded = !group.moments.is_none() && group.moments.cast<std::string>() == "int8";
  const bool needs_master =
      record.master != AdamMaster::kNone && record.master != AdamMaster::kStochastic;
  record.has_state = record.step.defined() && record.states[T::kExpAvg].defined() &&
                     record.states[T::kExpAvgSq].defined() &&
                     (!needs_master || record.states[T::kMaster].defined()) &&
                     (!coded || (record.states[T::kExpAvgScale].defined() &&
                                 record.states[T::kExpAvgSqScale].defined()));
  if (!needs_master) record.states[T::kMaster].reset();
}

// Options may change at every step: schedulers write them.
void AdamRecords::read_options(Group& group) const {
  const auto& k = keys();
  PyObject* const dict = group.dict.ptr();
  auto& o = group.options;
  PyObject* const lr = required(dict, k.lr);
  group.device_lr.reset();
  o.float32_lr = THPVariable_Check(lr) && THPVariable_Unpack(lr).scalar_type() == at::kFloat;
  if (THPVariable_Check(lr) && !THPVariable_Unpack(lr).is_cpu()) {
    group.device_lr = THPVariable_Unpack(lr);
  } else {
    o.lr = number(lr);
  }
  const py::sequence betas = borrowed(required(dict, k.betas));
  o.beta1 = number(py::object(betas[0]).ptr());
  o.beta2 = number(py::object(betas[1]).ptr());
  o.eps = number(required(dict, k.eps));
  o.weight_decay = number(required(dict, k.weight_decay));
  o.decoupled = truth(get(dict, k.decoupled));
  o.amsgrad = truth(get(dict, k.amsgrad));
  o.maximize = truth(get(dict, k.maximize));
  PyObject* const ema_decay = get(dict, k.ema_decay);
  group.has_ema = !is_none(ema_decay);
  group.ema_weight = group.has_ema ? 1 - number(ema_decay) : 0;
  group.stochastic_moments =
      !group.moments.is_none() && group.moments.cast<std::string>() == "bfloat16";
}

void AdamRecords::update(const py::list& groups, const py::dict& state) {
  if (!is_as_read(groups, state)) read(groups, state);
  for (auto& group : groups_) read_options(group);
}

void AdamRecords::lay_out(Record& record, const at::Tensor& user_grad, const char* optimizer,
                          bool writes_grad) const {
  const auto& group = group_of(record);
  const auto param = record.is_wrapper ? local(record.param) : record.param;
  auto grad = record.is_wrapper ? local(user_grad) : user_grad;
  record.resolved_grad.reset();
  if (grad.layout() == at::kStrided && (grad.is_conj() || grad.is_neg())) {
    grad = record.resolved_grad = grad.resolve_conj().resolve_neg();
  }
  if (writes_grad && grad.layout() == at::kStrided) at::assert_no_internal_overlap(grad);
  auto& laid = record.laid;
  const bool plain =
      !record.is_wrapper && record.is_laid && grad.layout() == at::kStrided &&
      grad.device() == param.device() && grad.scalar_type() == laid.operands[T::kGrad].dtype &&
      has_shape(param, record.sizes_and_strides) && has_shape(grad, record.sizes_and_strides);
  const auto lies_still = [&] {
    for (const auto k : c10::irange(static_cast<int>(T::kOperands))) {
      if (k == T::kGrad) continue;
      const auto& tensor = k == T::kParam ? param : record.states[k];
      void* const data = tensor.defined() ? tensor.mutable_data_ptr() : nullptr;
      if (laid.operands[k].data != data) return false;
      if (data != nullptr && laid.operands[k].dtype != tensor.scalar_type()) return false;
    }
    return true;
  };
  if (plain && lies_still()) {
    laid.operands[T::kGrad].data = grad.data_ptr();
  } else {
    AdamTensors tensors = record.states;
    if (record.is_wrapper) {
      for (auto& tensor : tensors) {
        if (tensor.defined()) tensor = local(tensor);
      }
    }
    tensors[T::kParam] = param;
    tensors[T::kGrad] = grad;
    check_adam_tensors(tensors, {optimizer, record.group, record.index});
    record.strides.clear();
    laid = laid_out(tensors, record.strides);
    record.sizes_and_strides = shape_of(param);
    // The short way above is for real gradients that lie as their parameter does.
    record.is_laid = !param.is_complex() && has_shape(grad, record.sizes_and_strides);
  }
  laid.master = record.master;
  laid.parameter = static_cast<uint32_t>(record.index) | static_cast<uint32_t>(record.group) << 20;
  laid.stochastic_moments = group.stochastic_moments;
  laid.ema_weight = group.ema_weight;
}

}  // namespace pyext
