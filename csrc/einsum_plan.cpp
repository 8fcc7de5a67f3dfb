// From an equation to steps: the request, and where its result lies.
#include "einsum_plan.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>

#include "einsum_planner.h"

namespace pyext {

Planner::Planner(const PlanRequest& request)
    : request_(request),
      expression_(parse()),
      output_(expression_.output.begin(), expression_.output.end()) {}

Plan Planner::plan() {
  plan_.equation = request_.equation;
  plan_.arithmetic = request_.arithmetic;
  for (size_t i = 0; i < request_.operands.size(); ++i) slots_.push_back(operand(i));
  live_.resize(slots_.size());
  std::iota(live_.begin(), live_.end(), 0);
  plan_result();
  if (plan_.clears && is_empty()) return plan_;
  const bool fused = live_.size() > 2 && live_.size() <= kMaxFactors && fused_is_cheaper();
  if (live_.size() == 1 || fused) {
    finish(live_, lower(live_).first);
  } else {
    contract_in_order();
  }
  plan_.peak_bytes = peak_bytes();
  for (const auto& step : plan_.steps) {
    plan_.flops += step.flops;
    plan_.bytes += step.bytes;
  }
  return plan_;
}

Expression Planner::parse() const {
  std::vector<c10::IntArrayRef> shapes;
  for (const auto& operand : request_.operands) shapes.emplace_back(operand.sizes);
  return parse_equation(request_.equation, shapes);
}

double Planner::volume(const Labels& labels) const {
  double product = 1;
  for (const Label label : labels) product *= static_cast<double>(size(label));
  return product;
}

// Whether there is nothing to add up.
bool Planner::is_empty() const {
  for (const auto& [label, size] : expression_.sizes) {
    if (size == 0) return true;
  }
  return false;
}

// Diagonals are strides added up; an index of one value that broadcasts is no index.
Slot Planner::operand(size_t i) const {
  const TensorLayout& layout = request_.operands[i];
  Slot slot;
  slot.dtype = layout.dtype;
  const Labels& labels = expression_.inputs[i];
  for (size_t d = 0; d < labels.size(); ++d) {
    if (layout.sizes[d] == 1) continue;
    if (!slot.has(labels[d])) slot.labels.push_back(labels[d]);
    slot.strides[labels[d]] += layout.strides[d];
  }
  return slot;
}

// Lays the result out, and gives each output label its stride in it.
void Planner::plan_result() {
  const Labels& labels = expression_.output;
  TensorLayout& result = plan_.result;
  result.dtype = request_.dtype;
  for (const Label label : labels) result.sizes.push_back(size(label));
  if (request_.out) {
    result.strides = request_.out->strides;
  } else {
    result.strides.resize(labels.size());
    std::vector<size_t> order(labels.size());
    std::iota(order.begin(), order.end(), size_t{0});
    if (request_.any_layout) {
      const Labels natural = natural_order();
      const auto place = [&](size_t d) {
        return std::find(natural.begin(), natural.end(), labels[d]) - natural.begin();
      };
      std::stable_sort(order.begin(), order.end(),
                       [&](size_t a, size_t b) { return place(a) < place(b); });
    }
    int64_t stride = 1;
    for (size_t i = order.size(); i-- > 0;) {
      result.strides[order[i]] = stride;
      stride *= std::max<int64_t>(result.sizes[order[i]], 1);
    }
  }
  for (size_t d = 0; d < labels.size(); ++d) {
    if (size(labels[d]) > 1) out_strides_[labels[d]] += result.strides[d];
  }
  for (const auto& [label, stride] : out_strides_) {
    plan_.written.sizes.push_back(size(label));
    plan_.written.strides.push_back(stride);
  }
  plan_.clears = output_.size() != labels.size() || is_empty();
}

// Batch, M and N of the operands from left to right: as a matrix product leaves them. It depends
// on the equation alone, so that a compiler can know it.
Labels Planner::natural_order() const {
  Labels result;
  const auto add = [&](const Labels& labels) {
    for (const Label label : labels) {
      if (output_.count(label) && std::find(result.begin(), result.end(), label) == result.end())
        result.push_back(label);
    }
  };
  Labels shared;
  for (const Label label : expression_.inputs[0]) {
    bool everywhere = true;
    for (const auto& labels : expression_.inputs) {
      everywhere &= std::find(labels.begin(), labels.end(), label) != labels.end();
    }
    if (everywhere) shared.push_back(label);
  }
  add(shared);
  for (const auto& labels : expression_.inputs) add(labels);
  return result;
}

// Intermediates live until they are used; the result lives to the end.
int64_t Planner::peak_bytes() const {
  const auto element = static_cast<int64_t>(c10::elementSize(request_.arithmetic));
  int64_t held = static_cast<int64_t>(volume(expression_.output) *
                                      static_cast<double>(c10::elementSize(request_.dtype)));
  if (request_.out) held = 0;
  int64_t peak = held, live = 0;
  std::map<int, int64_t> sizes;
  for (const auto& step : plan_.steps) {
    live += step.elements * element;
    sizes[step.result] = step.elements * element;
    peak = std::max(peak, held + live);
    for (const int input : step.inputs) {
      if (const auto found = sizes.find(input); found != sizes.end()) live -= found->second;
    }
  }
  return peak;
}

Plan make_plan(const PlanRequest& request) { return Planner(request).plan(); }

at::ScalarType arithmetic_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBFloat16:
    case at::kHalf:
      return at::kFloat;
    case at::kBool:
    case at::kByte:
    case at::kChar:
    case at::kShort:
      return at::kInt;
    case at::kFloat:
    case at::kDouble:
    case at::kInt:
    case at::kLong:
    case at::kComplexFloat:
    case at::kComplexDouble:
      return dtype;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "einsum(): not implemented for ", dtype);
  }
}

}  // namespace pyext
