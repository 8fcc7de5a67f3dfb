// Which kernel suits a product of slots, and how long it should take.
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <limits>

#include "einsum_cost.h"
#include "einsum_planner.h"

namespace pyext {

bool Planner::varies(int slot, Label label) const {
  const auto found = slots_[slot].strides.find(label);
  return found != slots_[slot].strides.end() && found->second != 0;
}

// Labels that somebody still wants when these slots are gone.
std::set<Label> Planner::wanted_without(const std::vector<int>& taken) const {
  std::set<Label> wanted = output_;
  for (const int slot : live_) {
    if (std::find(taken.begin(), taken.end(), slot) != taken.end()) continue;
    wanted.insert(slots_[slot].labels.begin(), slots_[slot].labels.end());
  }
  return wanted;
}

// The labels of the product of some slots: batch, then those of the factors from left to right.
Labels Planner::result_labels(const std::vector<int>& inputs) const {
  const std::set<Label> wanted = wanted_without(inputs);
  Labels batch, others;
  std::set<Label> seen;
  for (const int input : inputs) {
    for (const Label label : slots_[input].labels) {
      if (!wanted.count(label) || !seen.insert(label).second) continue;
      bool shared = inputs.size() > 1;
      for (const int other : inputs) shared &= slots_[other].has(label);
      (shared ? batch : others).push_back(label);
    }
  }
  batch.insert(batch.end(), others.begin(), others.end());
  return batch;
}

Labels Planner::all_labels(const std::vector<int>& inputs) const {
  std::set<Label> labels;
  for (const int input : inputs) {
    labels.insert(slots_[input].labels.begin(), slots_[input].labels.end());
  }
  return {labels.begin(), labels.end()};
}

double Planner::bytes_of(const std::vector<int>& inputs, const Labels& result) const {
  double bytes = volume(result) * static_cast<double>(c10::elementSize(request_.arithmetic));
  for (const int input : inputs) {
    double elements = 1;  // an expanded index takes no memory
    for (const auto& [label, stride] : slots_[input].strides) {
      elements *= stride == 0 ? 1 : static_cast<double>(size(label));
    }
    bytes += elements * static_cast<double>(c10::elementSize(slots_[input].dtype));
  }
  return bytes;
}

double Planner::flops_of(const std::vector<int>& inputs) const {
  const double terms = volume(all_labels(inputs));
  return terms * static_cast<double>(std::max<size_t>(1, inputs.size())) *
         (c10::isComplexType(request_.arithmetic) ? 4 : 1);
}

// How many values of a label, and of those that continue it in memory, follow each other in every
// factor; 1 where they lie apart in one.
double Planner::run_length(const std::vector<int>& inputs, const Labels& result,
                           Label label) const {
  const auto stride = [&](int input, Label of) {
    const auto found = slots_[input].strides.find(of);
    return found == slots_[input].strides.end() ? int64_t{0} : found->second;
  };
  for (const int input : inputs) {
    if (stride(input, label) > 1) return 1;
  }
  int64_t length = size(label);
  auto at = std::find(result.begin(), result.end(), label);
  const auto continues = [&](Label outer) {
    return std::all_of(inputs.begin(), inputs.end(), [&](int input) {
      return stride(input, outer) == length * stride(input, label);
    });
  };
  // A merged index of the result must lie there in the same order.
  while (at != result.end() && at != result.begin() && continues(*(at - 1))) length *= size(*--at);
  return static_cast<double>(length);
}

// How many runs of vectors a fused loop takes: along an index that is contiguous in, or absent
// from, every factor. 0: there is none.
double Planner::vector_runs(const std::vector<int>& inputs) const {
  const Labels result = result_labels(inputs);
  double fewest = 0;
  for (const Label label : all_labels(inputs)) {
    const double length = run_length(inputs, result, label);
    if (length < 8) continue;
    const bool kept = std::find(result.begin(), result.end(), label) != result.end();
    const double runs = volume(result) / (kept ? length : 1.0);
    if (fewest == 0 || runs < fewest) fewest = runs;
  }
  return fewest;
}

// The kernel for a product, and how long it should take.
std::pair<Lowering, double> Planner::lower(const std::vector<int>& inputs) const {
  const Labels result = result_labels(inputs);
  const double bytes = bytes_of(inputs, result), terms = volume(all_labels(inputs));
  const double element = static_cast<double>(c10::elementSize(request_.arithmetic));
  const double fused = fused_seconds(terms, bytes, element, vector_runs(inputs));
  if (inputs.size() == 3) {
    const double tiled = matrix_product_of_three(inputs).seconds;
    return tiled < fused ? std::pair{Lowering::kContract, tiled}
                         : std::pair{Lowering::kMultiplyReduce, fused};
  }
  if (inputs.size() != 2) return {Lowering::kMultiplyReduce, fused};
  GroupSizes sizes;
  const std::set<Label> kept(result.begin(), result.end());
  double scattered = 0;
  for (const Label label : all_labels(inputs)) {
    const bool in_a = varies(inputs[0], label), in_b = varies(inputs[1], label);
    const bool is_batch = kept.count(label) && in_a == in_b;
    double& group = !kept.count(label) ? sizes.k
                    : is_batch         ? sizes.batch
                    : in_a             ? sizes.m
                                       : sizes.n;
    group *= static_cast<double>(size(label));
    for (const int input : inputs) {
      if (is_batch && slots_[input].has(label) && slots_[input].strides.at(label) == 1) {
        scattered += volume(slots_[input].labels);
      }
    }
    const auto written = out_strides_.find(label);
    if (is_batch && inputs.size() == live_.size() && written != out_strides_.end() &&
        written->second == 1) {
      scattered += volume(result);
    }
  }
  if (sizes.m == 1 || sizes.n == 1 || sizes.k == 1) return {Lowering::kMultiplyReduce, fused};
  const double tiled = contract_seconds(sizes, bytes, element, scattered);
  return tiled <= fused ? std::pair{Lowering::kContract, tiled}
                        : std::pair{Lowering::kMultiplyReduce, fused};
}

// The factors in the order in which a matrix product of them takes least time.
ThreeFactors Planner::matrix_product_of_three(const std::vector<int>& inputs) const {
  ThreeFactors best;
  if (c10::isComplexType(request_.arithmetic)) return best;
  const Labels result = result_labels(inputs);
  std::array<size_t, 3> order = {0, 1, 2};
  do {
    const std::vector<int> ordered = {inputs[order[0]], inputs[order[1]], inputs[order[2]]};
    const double formed = formed_seconds(ordered, result);
    if (formed < best.seconds) best = {ordered, false, formed};
    const double weighed = weighed_seconds(ordered, result);
    if (weighed < best.seconds) best = {ordered, true, weighed};
  } while (std::next_permutation(order.begin(), order.end()));
  return best;
}

// The first factor times the product of the others, which is formed while it is packed.
double Planner::formed_seconds(const std::vector<int>& inputs, const Labels& result) const {
  GroupSizes sizes;
  for (const Label label : all_labels(inputs)) {
    const bool alone = varies(inputs[0], label);
    const bool in_pair = varies(inputs[1], label) || varies(inputs[2], label);
    if (!alone && !in_pair) continue;
    const bool kept = std::find(result.begin(), result.end(), label) != result.end();
    if (!kept && alone != in_pair) return std::numeric_limits<double>::infinity();
    double& group = !kept ? sizes.k : alone == in_pair ? sizes.batch : alone ? sizes.m : sizes.n;
    group *= static_cast<double>(size(label));
  }
  return three_factors_seconds(sizes, sizes.batch * sizes.k * sizes.n, 0, bytes_of(inputs, result),
                               static_cast<double>(c10::elementSize(request_.arithmetic)));
}

// The first factor times the second, whose rows the third weighs before they are added up.
double Planner::weighed_seconds(const std::vector<int>& inputs, const Labels& result) const {
  constexpr double kDeepest = 1024;  // sums of which a tile is finished at once
  GroupSizes sizes;
  double scattered = 0;
  for (const Label label : all_labels(inputs)) {
    const bool in_a = varies(inputs[0], label), in_b = varies(inputs[1], label);
    const bool in_weights = varies(inputs[2], label);
    if (!in_a && !in_b && !in_weights) continue;
    const bool kept = std::find(result.begin(), result.end(), label) != result.end();
    const bool fits = kept ? in_a || in_b : in_a && in_b != in_weights;
    if (!fits) return std::numeric_limits<double>::infinity();
    double& group = !kept ? (in_b ? sizes.k : sizes.m) : in_a ? sizes.batch : sizes.n;
    group *= static_cast<double>(size(label));
    if (kept && in_a && slots_[inputs[0]].strides.at(label) == 1) {
      scattered = volume(slots_[inputs[0]].labels);
    }
  }
  if (sizes.k > kDeepest) return std::numeric_limits<double>::infinity();
  // Every product of the batch packs its columns anew.
  const double formed = sizes.batch * (sizes.m + sizes.k) * sizes.n;
  return three_factors_seconds(sizes, formed, scattered, bytes_of(inputs, result),
                               static_cast<double>(c10::elementSize(request_.arithmetic)));
}

// Whether one step over all operands beats the products of pairs, or costs so little more that
// the memory of an intermediate is worth it: much, where that is large beside what is given.
bool Planner::fused_is_cheaper() const {
  constexpr double kWorthSome = 1.25, kWorthMuch = 4;
  const double fused = lower(live_).second;
  Planner pairs = *this;
  pairs.contract_in_order();
  const auto element = static_cast<double>(c10::elementSize(request_.arithmetic));
  double seconds = 0, largest = 0;
  for (const auto& step : pairs.plan_.steps) {
    const double bytes = static_cast<double>(step.elements) * element;
    seconds += step.seconds + std::max(0.0, bytes - kCachedBytes) / kFreshBytesPerSecond;
    largest = std::max(largest, bytes);
  }
  const bool is_large = largest > bytes_of(live_, expression_.output) / 2;
  return fused < (is_large ? kWorthMuch : kWorthSome) * seconds;
}

}  // namespace pyext
