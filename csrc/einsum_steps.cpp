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
    contract(pair, lower(pair).first);
  }
}

std::vector<int> Planner::pair_at(int64_t first, int64_t second) const {
  const auto count = static_cast<int64_t>(live_.size());
  TORCH_CHECK(first != second && first >= 0 && second >= 0 && first < count && second < count,
              "einsum(): the path contracts (", first, ", ", second, ") of ", count,
              " operands\n  ", quoted(request_.equation));
  return {live_[first], live_[second]};
}

// Without a path: the pair with which it takes least time, then that of the smallest result. Pairs
// that sum over nothing come last.
std::vector<int> Planner::cheapest_pair() const {
  std::vector<int> best;
  auto least = std::pair(true, std::numeric_limits<double>::infinity());
  for (size_t j = 1; j < live_.size(); ++j) {
    for (size_t i = 0; i < j; ++i) {
      const std::vector<int> pair = {live_[i], live_[j]};
      const auto cost =
          std::pair(!sums(pair), seconds_from(pair) + 1e-12 * volume(result_labels(pair)));
      if (cost < least) least = cost, best = pair;
    }
  }
  return best;
}

// Whether the product of a pair sums over an index that both have.
bool Planner::sums(const std::vector<int>& pair) const {
  const std::set<Label> wanted = wanted_without(pair);
  const Labels& labels = slots_[pair[0]].labels;
  return std::any_of(labels.begin(), labels.end(), [&](Label label) {
    return slots_[pair[1]].has(label) && !wanted.count(label);
  });
}

// How long the product of a pair should take; of three factors, with the product that it leaves.
double Planner::seconds_from(const std::vector<int>& pair) const {
  constexpr double kByBlas = 0.95;  // decides among nearly equals
  const auto [lowering, seconds] = lower(pair);
  const auto bytes =
      volume(result_labels(pair)) * static_cast<double>(c10::elementSize(request_.arithmetic));
  if (live_.size() != 3 || bytes > intermediate_cap()) return seconds;
  Planner trial = *this;
  trial.contract(pair, lowering);
  trial.finish(trial.live_, trial.lower(trial.live_).first);
  double sum = 0;
  for (size_t i = plan_.steps.size(); i < trial.plan_.steps.size(); ++i) {
    const Step& step = trial.plan_.steps[i];
    sum += step.seconds * (step.lowering == Lowering::kMatmul ? kByBlas : 1);
  }
  return sum;
}

// Puts the product of a pair in its place.
void Planner::contract(const std::vector<int>& pair, Lowering lowering) {
  const int result = intermediate(pair, lowering);
  live_.erase(std::remove_if(live_.begin(), live_.end(),
                             [&](int slot) { return slot == pair[0] || slot == pair[1]; }),
              live_.end());
  live_.push_back(result);
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

// An intermediate result, contiguous.
Slot Planner::laid_out(const Labels& labels) const {
  Slot slot;
  slot.labels = labels;
  slot.dtype = request_.arithmetic;
  int64_t stride = 1;
  for (size_t i = labels.size(); i-- > 0;) {
    slot.strides[labels[i]] = stride;
    stride *= size(labels[i]);
  }
  return slot;
}

// The labels of an intermediate result in the order in which it is laid out. The last one may also
// lie as the matrix that the last step makes of it, if that leaves fewer indices to walk in the two
// steps together.
Labels Planner::intermediate_labels(const std::vector<int>& inputs) const {
  const Labels usual = result_labels(inputs);
  if (live_.size() != 3 || inputs.size() != 2) return usual;
  const auto is_other = [&](int slot) { return slot != inputs[0] && slot != inputs[1]; };
  const int other = *std::find_if(live_.begin(), live_.end(), is_other);
  const auto stride_in = [](const std::map<Label, int64_t>& strides, Label label) {
    const auto found = strides.find(label);
    return found == strides.end() ? int64_t{0} : found->second;
  };
  // Batch, rows and columns of the last step, each as the tensor has it that the step meets next.
  Labels batch, kept, summed;
  for (const Label label : usual) {
    const bool in_other = slots_[other].has(label);
    (!out_strides_.count(label) ? summed : in_other ? batch : kept).push_back(label);
  }
  const auto sort_as = [&](Labels& labels, const std::map<Label, int64_t>& strides) {
    std::stable_sort(labels.begin(), labels.end(), [&](Label x, Label y) {
      return stride_in(strides, x) > stride_in(strides, y);
    });
  };
  sort_as(batch, out_strides_);
  sort_as(kept, out_strides_);
  sort_as(summed, slots_[other].strides);

  const auto indices = [&](const Labels& labels) {
    Planner trial = *this;
    trial.slots_.push_back(laid_out(labels));
    const int result = static_cast<int>(slots_.size());
    const auto first =
        trial.problem_of(inputs, labels, trial.slots_[result].strides, request_.arithmetic);
    const auto last =
        trial.problem_of({other, result}, expression_.output, out_strides_, request_.dtype);
    return first.dims.size() + last.dims.size();
  };
  Labels best = usual;
  for (const auto& [rows, cols] : {std::pair(kept, summed), std::pair(summed, kept)}) {
    Labels labels = batch;
    labels.insert(labels.end(), rows.begin(), rows.end());
    labels.insert(labels.end(), cols.begin(), cols.end());
    if (indices(labels) < indices(best)) best = labels;
  }
  return best;
}

int Planner::intermediate(const std::vector<int>& inputs, Lowering lowering) {
  const Labels labels = intermediate_labels(inputs);
  const double elements = volume(labels);
  const double bytes = elements * static_cast<double>(c10::elementSize(request_.arithmetic));
  TORCH_CHECK(bytes <= intermediate_cap(), "einsum(): the intermediate '", labels_text(labels),
              "' would take ", gib(bytes), ", more than ", gib(intermediate_cap()),
              " that operands and result of this size allow; give another path=\n  ",
              quoted(request_.equation));
  const Slot slot = laid_out(labels);
  slots_.push_back(slot);
  const int result = static_cast<int>(slots_.size()) - 1;
  add_step(inputs, result, labels, slot.strides, slot.dtype, lowering);
  plan_.steps.back().elements = static_cast<int64_t>(elements);
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

// The problem of a step, its indices merged where they lie alike in all tensors.
SumOfProducts Planner::problem_of(const std::vector<int>& inputs, const Labels& labels,
                                  const std::map<Label, int64_t>& out, at::ScalarType dtype) const {
  SumOfProducts problem;
  for (const int input : inputs) problem.in.push_back({nullptr, slots_[input].dtype});
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
  return problem;
}

void Planner::add_step(std::vector<int> inputs, int result, const Labels& labels,
                       const std::map<Label, int64_t>& out, at::ScalarType dtype,
                       Lowering lowering) {
  Step step;
  step.lowering = lowering;
  bool weighs_rows = false;
  if (lowering == Lowering::kContract && inputs.size() == 3) {
    const ThreeFactors three = matrix_product_of_three(inputs);
    inputs = three.inputs;
    weighs_rows = three.weighs_rows;
  }
  step.inputs = inputs;
  step.result = result;
  step.flops = flops_of(inputs);
  step.bytes = bytes_of(inputs, labels);
  step.seconds = lower(inputs).second;
  for (const int input : inputs) {
    if (!step.text.empty()) step.text += ",";
    step.text += labels_text(slots_[input].labels);
  }
  step.text += "->" + labels_text(labels);
  step.problem = problem_of(inputs, labels, out, dtype);
  step.problem.weighs_rows = weighs_rows;
  SumOfProducts& problem = step.problem;
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
