// The steps of a plan: products in order, each written down for its kernel.
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdio>
#include <limits>

#include "einsum_planner.h"

namespace pyext {

namespace {

std::string gib(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g GiB", bytes / (1 << 30));
  return text;
}

}  // namespace

void Planner::contract_in_order() {
  reduce_lonely_labels();
  std::vector<int64_t> path = request_.path;
  const size_t operands = live_.size();
  TORCH_CHECK(path.empty() || path.size() == 2 * (operands - 1), "einsum(): expected a path of ",
              operands - 1, " pairs for ", operands, " operands, got ", path.size() / 2, "\n  ",
              quoted(request_.equation));
  for (size_t i = 0; live_.size() > 1; ++i) {
    std::vector<int> pair = path.empty() ? cheapest_pair() : pair_at(path[2 * i], path[2 * i + 1]);
    if (live_.size() == 2) {
      if (pair[0] > pair[1]) std::swap(pair[0], pair[1]);
      return finish(pair, lower(pair).first);
    }
    const int result = intermediate(pair, lower(pair).first);
    live_.erase(std::remove_if(live_.begin(), live_.end(),
                               [&](int slot) { return slot == pair[0] || slot == pair[1]; }),
                live_.end());
    live_.push_back(result);
  }
}

std::vector<int> Planner::pair_at(int64_t first, int64_t second) const {
  const auto count = static_cast<int64_t>(live_.size());
  TORCH_CHECK(first != second && first >= 0 && second >= 0 && first < count && second < count,
              "einsum(): the path contracts (", first, ", ", second, ") of ", count,
              " operands\n  ", quoted(request_.equation));
  return {live_[first], live_[second]};
}

// Without a path: the pair that takes least time, then the smallest result.
std::vector<int> Planner::cheapest_pair() const {
  std::vector<int> best;
  double least = std::numeric_limits<double>::infinity();
  for (size_t j = 1; j < live_.size(); ++j) {
    for (size_t i = 0; i < j; ++i) {
      const std::vector<int> pair = {live_[i], live_[j]};
      const double seconds = lower(pair).second + 1e-12 * volume(result_labels(pair));
      if (seconds < least) least = seconds, best = pair;
    }
  }
  return best;
}

// A label that only one operand has, and the output has not, is summed over first.
void Planner::reduce_lonely_labels() {
  for (int& slot : live_) {
    const std::set<Label> wanted = wanted_without({slot});
    const auto& strides = slots_[slot].strides;
    const bool lonely = std::any_of(strides.begin(), strides.end(),
                                    [&](const auto& entry) { return !wanted.count(entry.first); });
    if (lonely) slot = intermediate({slot}, Lowering::kMultiplyReduce);
  }
}

int Planner::intermediate(const std::vector<int>& inputs, Lowering lowering) {
  const Labels labels = result_labels(inputs);
  const double elements = volume(labels);
  const double bytes = elements * static_cast<double>(c10::elementSize(request_.arithmetic));
  TORCH_CHECK(bytes <= intermediate_cap(), "einsum(): the intermediate '", labels_text(labels),
              "' would take ", gib(bytes), ", more than ", gib(intermediate_cap()),
              " that operands and result of this size allow; give another path=\n  ",
              quoted(request_.equation));
  Slot slot;
  slot.labels = labels;
  slot.dtype = request_.arithmetic;
  int64_t stride = 1;
  for (size_t i = labels.size(); i-- > 0;) {
    slot.strides[labels[i]] = stride;
    stride *= size(labels[i]);
  }
  slots_.push_back(slot);
  const int result = static_cast<int>(slots_.size()) - 1;
  add_step(inputs, result, labels, slot.strides, slot.dtype, lowering);
  plan_.steps.back().elements = stride;
  return result;
}

// No intermediate may be larger than this: 8 times everything that is given and asked for.
double Planner::intermediate_cap() const {
  double bytes = volume(expression_.output) * static_cast<double>(c10::elementSize(request_.dtype));
  for (const auto& operand : request_.operands) {
    double elements = 1;
    for (const int64_t size : operand.sizes) elements *= static_cast<double>(size);
    bytes += elements * static_cast<double>(c10::elementSize(operand.dtype));
  }
  return std::max(8 * bytes, double{1 << 30});
}

// The last step writes into the result.
void Planner::finish(const std::vector<int>& inputs, Lowering lowering) {
  Labels labels;
  for (const Label label : expression_.output) {
    if (std::find(labels.begin(), labels.end(), label) == labels.end()) labels.push_back(label);
  }
  add_step(inputs, -1, labels, out_strides_, request_.dtype, lowering);
}

void Planner::add_step(std::vector<int> inputs, int result, const Labels& labels,
                       const std::map<Label, int64_t>& out, at::ScalarType dtype,
                       Lowering lowering) {
  Step step;
  step.lowering = lowering;
  if (lowering == Lowering::kContract && inputs.size() == 3) {
    const ThreeFactors three = matrix_product_of_three(inputs);
    inputs = three.inputs;
    step.problem.weighs_rows = three.weighs_rows;
  }
  step.inputs = inputs;
  step.result = result;
  step.flops = flops_of(inputs);
  step.bytes = bytes_of(inputs, labels);
  step.seconds = lower(inputs).second;
  for (const int input : inputs) {
    if (!step.text.empty()) step.text += ",";
    step.text += labels_text(slots_[input].labels);
    step.problem.in.push_back({nullptr, slots_[input].dtype});
  }
  step.text += "->" + labels_text(labels);
  SumOfProducts& problem = step.problem;
  problem.out = {nullptr, dtype};
  problem.dtype = request_.arithmetic;
  for (const Label label : all_labels(inputs)) {
    ProductDim dim{size(label)};
    const auto stride = out.find(label);
    dim.out = stride == out.end() ? 0 : stride->second;
    for (size_t f = 0; f < inputs.size(); ++f) {
      const auto found = slots_[inputs[f]].strides.find(label);
      if (found != slots_[inputs[f]].strides.end()) dim.in[f] = found->second;
    }
    problem.dims.push_back(dim);
  }
  for (const Label label : labels) {  // an index of the result that every factor broadcasts
    const bool missing = std::none_of(inputs.begin(), inputs.end(),
                                      [&](int input) { return slots_[input].has(label); });
    if (missing && size(label) > 1) problem.dims.push_back({size(label), out.at(label)});
  }
  merge_dims(problem.dims);
  if (lowering == Lowering::kContract && inputs.size() == 2) {
    const bool of_operands = request_.operands.size() == 2 && inputs[0] < 2 && inputs[1] < 2;
    problem.symmetric = request_.same_operand && of_operands && is_symmetric(problem);
    if (problem.symmetric) step.flops /= 2;
    if (matmul_is_faster(problem)) {
      step.lowering = Lowering::kMatmul;
      step.matmul = matmul_views(problem);
    }
  }
  plan_.steps.push_back(std::move(step));
}

}  // namespace pyext
