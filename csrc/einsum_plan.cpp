// From an equation to steps. An index is a label; a tensor is a set of labels with strides.
#include "einsum_plan.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "einsum_cost.h"
#include "einsum_lowering.h"

namespace pyext {
namespace {

// A tensor as the plan sees it: each label once, with the distance of its values.
struct Slot {
  Labels labels;
  std::map<Label, int64_t> strides;  // without labels of one value
  at::ScalarType dtype;
  bool has(Label label) const { return strides.count(label) > 0; }
};

class Planner {
 public:
  explicit Planner(const PlanRequest& request)
      : request_(request),
        expression_(parse()),
        output_(expression_.output.begin(), expression_.output.end()) {}

  Plan plan() {
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

 private:
  Expression parse() const {
    std::vector<c10::IntArrayRef> shapes;
    for (const auto& operand : request_.operands) shapes.emplace_back(operand.sizes);
    return parse_equation(request_.equation, shapes);
  }

  int64_t size(Label label) const { return expression_.sizes.at(label); }

  double volume(const Labels& labels) const {
    double product = 1;
    for (const Label label : labels) product *= static_cast<double>(size(label));
    return product;
  }

  // Diagonals are strides added up; an index of one value that broadcasts is no index.
  Slot operand(size_t i) const {
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
  void plan_result() {
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

  // Whether there is nothing to add up.
  bool is_empty() const {
    for (const auto& [label, size] : expression_.sizes) {
      if (size == 0) return true;
    }
    return false;
  }

  // Batch, M and N of the operands from left to right: as a matrix product leaves them. It depends
  // on the equation alone, so that a compiler can know it.
  Labels natural_order() const {
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

  // Labels that somebody still wants when these slots are gone.
  std::set<Label> wanted_without(const std::vector<int>& taken) const {
    std::set<Label> wanted = output_;
    for (const int slot : live_) {
      if (std::find(taken.begin(), taken.end(), slot) != taken.end()) continue;
      wanted.insert(slots_[slot].labels.begin(), slots_[slot].labels.end());
    }
    return wanted;
  }

  // The labels of the product of some slots: batch, then those of the factors from left to right.
  Labels result_labels(const std::vector<int>& inputs) const {
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

  Labels all_labels(const std::vector<int>& inputs) const {
    std::set<Label> labels;
    for (const int input : inputs) {
      labels.insert(slots_[input].labels.begin(), slots_[input].labels.end());
    }
    return {labels.begin(), labels.end()};
  }

  double bytes_of(const std::vector<int>& inputs, const Labels& result) const {
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

  double flops_of(const std::vector<int>& inputs) const {
    const double terms = volume(all_labels(inputs));
    return terms * static_cast<double>(std::max<size_t>(1, inputs.size())) *
           (c10::isComplexType(request_.arithmetic) ? 4 : 1);
  }

  // The kernel for a product, and how long it should take.
  std::pair<Lowering, double> lower(const std::vector<int>& inputs) const {
    const Labels result = result_labels(inputs);
    const double bytes = bytes_of(inputs, result), terms = volume(all_labels(inputs));
    const double element = static_cast<double>(c10::elementSize(request_.arithmetic));
    const double fused = fused_seconds(terms, bytes, element, has_lane(inputs));
    if (inputs.size() == 3) {
      const double formed = formed_product(inputs).second;
      return formed < fused ? std::pair{Lowering::kContract, formed}
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
    }
    if (sizes.m == 1 || sizes.n == 1 || sizes.k == 1) return {Lowering::kMultiplyReduce, fused};
    const double tiled = contract_seconds(sizes, bytes, element, scattered);
    return tiled <= fused ? std::pair{Lowering::kContract, tiled}
                          : std::pair{Lowering::kMultiplyReduce, fused};
  }

  // A matrix product of one of three factors and the product of the other two, which is formed
  // while it is packed: which factor stands alone, and how long it should take.
  std::pair<size_t, double> formed_product(const std::vector<int>& inputs) const {
    std::pair<size_t, double> best{0, std::numeric_limits<double>::infinity()};
    if (c10::isComplexType(request_.arithmetic)) return best;
    const Labels result = result_labels(inputs);
    const std::set<Label> kept(result.begin(), result.end());
    const double bytes = bytes_of(inputs, result);
    const double element = static_cast<double>(c10::elementSize(request_.arithmetic));
    for (size_t alone = 0; alone < inputs.size(); ++alone) {
      GroupSizes sizes;
      bool fits = true;
      for (const Label label : all_labels(inputs)) {
        bool in_pair = false;
        for (size_t i = 0; i < inputs.size(); ++i) {
          in_pair |= i != alone && varies(inputs[i], label);
        }
        const bool in_alone = varies(inputs[alone], label);
        if (!in_alone && !in_pair) continue;
        fits &= kept.count(label) || in_alone == in_pair;
        double& group = !kept.count(label)    ? sizes.k
                        : in_alone == in_pair ? sizes.batch
                        : in_alone            ? sizes.m
                                              : sizes.n;
        group *= static_cast<double>(size(label));
      }
      if (!fits || sizes.m == 1 || sizes.n == 1 || sizes.k == 1) continue;
      const double formed = sizes.batch * sizes.k * sizes.n * element / 4 / kFormedPerSecond;
      const double seconds = formed + contract_seconds(sizes, bytes, element, 0);
      if (seconds < best.second) best = {alone, seconds};
    }
    return best;
  }

  // Whether some index is contiguous in, or absent from, every factor.
  bool has_lane(const std::vector<int>& inputs) const {
    for (const Label label : all_labels(inputs)) {
      const bool contiguous = std::all_of(inputs.begin(), inputs.end(), [&](int input) {
        const auto& strides = slots_[input].strides;
        const auto found = strides.find(label);
        return found == strides.end() || found->second <= 1;
      });
      if (contiguous && size(label) >= 8) return true;
    }
    return false;
  }

  bool varies(int slot, Label label) const {
    const auto found = slots_[slot].strides.find(label);
    return found != slots_[slot].strides.end() && found->second != 0;
  }

  // Whether one step over all operands beats the products of pairs, or costs so little more that
  // the memory of an intermediate is worth it: much, where that is large beside what is given.
  bool fused_is_cheaper() const {
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

  void contract_in_order() {
    reduce_lonely_labels();
    std::vector<int64_t> path = request_.path;
    const size_t operands = live_.size();
    TORCH_CHECK(path.empty() || path.size() == 2 * (operands - 1), "einsum(): expected a path of ",
                operands - 1, " pairs for ", operands, " operands, got ", path.size() / 2, "\n  ",
                quoted(request_.equation));
    for (size_t i = 0; live_.size() > 1; ++i) {
      std::vector<int> pair =
          path.empty() ? cheapest_pair() : pair_at(path[2 * i], path[2 * i + 1]);
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

  std::vector<int> pair_at(int64_t first, int64_t second) const {
    const auto count = static_cast<int64_t>(live_.size());
    TORCH_CHECK(first != second && first >= 0 && second >= 0 && first < count && second < count,
                "einsum(): the path contracts (", first, ", ", second, ") of ", count,
                " operands\n  ", quoted(request_.equation));
    return {live_[first], live_[second]};
  }

  // Without a path: the pair that takes least time, then the smallest result.
  std::vector<int> cheapest_pair() const {
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
  void reduce_lonely_labels() {
    for (int& slot : live_) {
      const std::set<Label> wanted = wanted_without({slot});
      const auto& strides = slots_[slot].strides;
      const bool lonely = std::any_of(strides.begin(), strides.end(), [&](const auto& entry) {
        return !wanted.count(entry.first);
      });
      if (lonely) slot = intermediate({slot}, Lowering::kMultiplyReduce);
    }
  }

  int intermediate(const std::vector<int>& inputs, Lowering lowering) {
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
  double intermediate_cap() const {
    double bytes =
        volume(expression_.output) * static_cast<double>(c10::elementSize(request_.dtype));
    for (const auto& operand : request_.operands) {
      double elements = 1;
      for (const int64_t size : operand.sizes) elements *= static_cast<double>(size);
      bytes += elements * static_cast<double>(c10::elementSize(operand.dtype));
    }
    return std::max(8 * bytes, double{1 << 30});
  }

  static std::string gib(double bytes) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g GiB", bytes / (1 << 30));
    return text;
  }

  // The last step writes into the result.
  void finish(const std::vector<int>& inputs, Lowering lowering) {
    Labels labels;
    for (const Label label : expression_.output) {
      if (std::find(labels.begin(), labels.end(), label) == labels.end()) labels.push_back(label);
    }
    add_step(inputs, -1, labels, out_strides_, request_.dtype, lowering);
  }

  void add_step(std::vector<int> inputs, int result, const Labels& labels,
                const std::map<Label, int64_t>& out, at::ScalarType dtype, Lowering lowering) {
    Step step;
    step.lowering = lowering;
    if (lowering == Lowering::kContract && inputs.size() == 3) {  // the lone factor leads
      const auto alone = inputs.begin() + static_cast<int64_t>(formed_product(inputs).first);
      std::rotate(inputs.begin(), alone, alone + 1);
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
      if (result < 0 && matmul_is_faster(problem)) {
        step.lowering = Lowering::kMatmul;
        step.matmul = matmul_views(problem);
      }
    }
    plan_.steps.push_back(std::move(step));
  }

  // Intermediates live until they are used; the result lives to the end.
  int64_t peak_bytes() const {
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

  const PlanRequest& request_;
  Expression expression_;
  std::set<Label> output_;
  std::vector<Slot> slots_;
  std::vector<int> live_;  // slots still to be multiplied, in the order that paths number
  std::map<Label, int64_t> out_strides_;
  Plan plan_;
};

}  // namespace

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
