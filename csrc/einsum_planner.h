// How a plan is made. An index is a label; a tensor is a set of labels with strides.
//
// einsum_plan.cpp reads the request, einsum_estimate.cpp says which kernel suits a product and how
// long it should take, einsum_steps.cpp orders the products and writes them down.
#pragma once

#include <limits>
#include <map>
#include <set>
#include <utility>

#include "einsum_plan.h"

namespace pyext {

// A tensor as the plan sees it: each label once, with the distance of its values.
struct Slot {
  Labels labels;
  std::map<Label, int64_t> strides;  // without labels of one value
  at::ScalarType dtype;
  bool has(Label label) const { return strides.count(label) > 0; }
};

// A matrix product among three factors: their order for the kernel, and how long it should take.
struct ThreeFactors {
  std::vector<int> inputs;
  bool weighs_rows = false;
  double seconds = std::numeric_limits<double>::infinity();
};

class Planner {
 public:
  explicit Planner(const PlanRequest& request);
  Plan plan();

 private:
  // ---- the request: einsum_plan.cpp ----
  Expression parse() const;
  int64_t size(Label label) const { return expression_.sizes.at(label); }
  double volume(const Labels& labels) const;
  bool is_empty() const;
  Slot operand(size_t i) const;
  void plan_result();
  Labels natural_order() const;
  int64_t peak_bytes() const;

  // ---- what a product of slots is, and takes: einsum_estimate.cpp ----
  bool varies(int slot, Label label) const;
  std::set<Label> wanted_without(const std::vector<int>& taken) const;
  Labels result_labels(const std::vector<int>& inputs) const;
  Labels all_labels(const std::vector<int>& inputs) const;
  double bytes_of(const std::vector<int>& inputs, const Labels& result) const;
  double flops_of(const std::vector<int>& inputs) const;
  double run_length(const std::vector<int>& inputs, const Labels& result, Label label) const;
  double vector_runs(const std::vector<int>& inputs) const;
  std::pair<Lowering, double> lower(const std::vector<int>& inputs) const;
  ThreeFactors matrix_product_of_three(const std::vector<int>& inputs) const;
  double formed_seconds(const std::vector<int>& inputs, const Labels& result) const;
  double weighed_seconds(const std::vector<int>& inputs, const Labels& result) const;
  bool fused_is_cheaper() const;

  // ---- the steps: einsum_steps.cpp ----
  void contract_in_order();
  std::vector<int> pair_at(int64_t first, int64_t second) const;
  std::vector<int> cheapest_pair() const;
  bool sums(const std::vector<int>& pair) const;
  double seconds_from(const std::vector<int>& pair) const;
  void contract(const std::vector<int>& pair, Lowering lowering);
  void reduce_lonely_labels();
  Slot laid_out(const Labels& labels) const;
  Labels intermediate_labels(const std::vector<int>& inputs) const;
  int intermediate(const std::vector<int>& inputs, Lowering lowering);
  double intermediate_cap() const;
  void finish(const std::vector<int>& inputs, Lowering lowering);
  SumOfProducts problem_of(const std::vector<int>& inputs, const Labels& labels,
                           const std::map<Label, int64_t>& out, at::ScalarType dtype) const;
  void add_step(std::vector<int> inputs, int result, const Labels& labels,
                const std::map<Label, int64_t>& out, at::ScalarType dtype, Lowering lowering);

  const PlanRequest& request_;
  Expression expression_;
  std::set<Label> output_;
  std::vector<Slot> slots_;
  std::vector<int> live_;  // slots still to be multiplied, in the order that paths number
  std::map<Label, int64_t> out_strides_;
  Plan plan_;
};

}  // namespace pyext
