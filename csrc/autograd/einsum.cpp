// Derivatives of einsum: those of a contraction are contractions. The gradient in an operand is the
// einsum of the result's gradient, in the operand's place, and the other operands; so there is no
// backward op, and derivatives of every order are exact.
#include "einsum.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/real.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>

#include "autograd/node.h"

namespace pyext {
namespace {

// The path of the gradient in operand `target`, from the path of the einsum. Seen from that
// operand, the tree of contractions hangs the other way up: first the products that do not contain
// it, as before, then the gradient through those that did, from the last one down.
std::vector<int64_t> gradient_path(at::IntArrayRef path, int64_t operands, int64_t target) {
  struct Pair {
    int64_t left, right;
    bool contains;  // the target
  };
  std::vector<Pair> pairs;
  std::vector<int64_t> live(operands);  // the operands, then results: operands + index of the pair
  std::iota(live.begin(), live.end(), int64_t{0});
  const auto contains = [&](int64_t node) {
    return node < operands ? node == target : pairs[node - operands].contains;
  };
  const auto take = [](std::vector<int64_t>& from, int64_t node) {
    const auto place = std::find(from.begin(), from.end(), node);
    const int64_t position = place - from.begin();
    from.erase(place);
    return position;
  };
  for (size_t i = 0; i + 1 < path.size(); i += 2) {
    const int64_t left = live.at(path[i]), right = live.at(path[i + 1]);
    take(live, left);
    take(live, right);
    pairs.push_back({left, right, contains(left) || contains(right)});
    live.push_back(operands + static_cast<int64_t>(pairs.size()) - 1);
  }

  std::vector<int64_t> result, present(operands);
  std::iota(present.begin(), present.end(), int64_t{0});
  const auto contract = [&](int64_t left, int64_t right, int64_t into) {
    const auto place = [&](int64_t node) {
      return std::find(present.begin(), present.end(), node) - present.begin();
    };
    result.push_back(place(left));
    result.push_back(place(right));
    take(present, left);
    take(present, right);
    present.push_back(into);
  };
  for (size_t i = 0; i < pairs.size(); ++i) {
    if (!pairs[i].contains) {
      contract(pairs[i].left, pairs[i].right, operands + static_cast<int64_t>(i));
    }
  }
  int64_t gradient = target;  // it stands in the target's place
  for (size_t i = pairs.size(); i-- > 0;) {
    if (!pairs[i].contains) continue;
    const int64_t other = contains(pairs[i].left) ? pairs[i].right : pairs[i].left;
    const int64_t into = operands + static_cast<int64_t>(pairs.size() + i);
    contract(gradient, other, into);
    gradient = into;
  }
  return result;
}

struct EinsumBackward : OpNode {
  EinsumBackward() : OpNode("EinsumBackward") {}

  // What is known of an operand; its values only if another operand's gradient needs them.
  struct Operand {
    std::vector<c10::SymInt> sizes;
    at::ScalarType dtype;
    SavedVariable values;
    bool is_saved = false;
  };

  variable_list gradients(variable_list&& grads) override {
    variable_list result(operands.size());
    if (!grads[0].defined()) return result;
    // In the types of the forward pass, wherever backward is called.
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    std::vector<at::Tensor> values;
    std::vector<int64_t> ranks;
    for (const auto& operand : operands) {
      values.push_back(operand.is_saved ? unpack(operand.values) : at::Tensor());
      ranks.push_back(static_cast<int64_t>(operand.sizes.size()));
    }
    const Expression expression = parse_labels(equation, ranks);
    for (size_t i = 0; i < values.size(); ++i) {
      if (task_should_compute_output(i)) result[i] = gradient(i, grads[0], values, expression);
    }
    return result;
  }

  // Whether the result or an operand other than `target` has this label in its full size.
  bool is_given(Label label, size_t target, const Expression& expression) const {
    const auto& output = expression.output;
    if (std::find(output.begin(), output.end(), label) != output.end()) return true;
    for (size_t i = 0; i < operands.size(); ++i) {
      const Labels& labels = expression.inputs[i];
      for (size_t d = 0; i != target && d < labels.size(); ++d) {
        if (labels[d] == label && operands[i].sizes[d] != 1) return true;
      }
    }
    return false;
  }

  at::Tensor gradient(size_t target, const at::Tensor& grad, const std::vector<at::Tensor>& values,
                      const Expression& expression) const {
    Labels given = expression.output, wanted;
    at::Tensor cotangent = grad;
    const Labels& labels = expression.inputs[target];
    const auto& sizes = operands[target].sizes;
    std::vector<int64_t> absent;  // dimensions that the contraction does not give
    for (size_t d = 0; d < labels.size(); ++d) {
      const Label label = labels[d];
      const bool repeated = std::count(labels.begin(), labels.end(), label) > 1;
      bool known = is_given(label, target, expression) ||
                   std::find(given.begin(), given.end(), label) != given.end();
      if (!known && repeated) {  // a trace: its gradient is a diagonal of equal values
        given.push_back(label);
        auto expanded = cotangent.sym_sizes().vec();
        expanded.push_back(sizes[d]);
        cotangent = cotangent.unsqueeze(-1).expand_symint(expanded);
        known = true;
      }
      if (!known || sizes[d] == 1) {  // broadcast: there or here
        absent.push_back(static_cast<int64_t>(d));
      } else {
        wanted.push_back(label);
      }
    }
    std::string text;
    std::vector<at::Tensor> factors;
    for (size_t i = 0; i < values.size(); ++i) {
      if (i > 0) text += ",";
      text += letters_text(i == target ? given : expression.inputs[i]);
      factors.push_back(i == target ? cotangent : values[i].conj());
    }
    text += "->" + letters_text(wanted);
    EinsumOptions options;
    options.alpha = alpha.conj();
    options.accumulate_dtype = accumulate_dtype;
    const auto turned =
        gradient_path(path, static_cast<int64_t>(values.size()), static_cast<int64_t>(target));
    if (!path.empty()) options.path = turned;
    at::Tensor result = einsum(text, factors, options);
    for (const int64_t d : absent) result = result.unsqueeze(d);
    result = result.expand_symint(sizes);
    const at::ScalarType dtype = operands[target].dtype;
    if (!c10::isComplexType(dtype) && result.is_complex()) result = at::real(result);
    return result.to(dtype);
  }

  void release_variables() override {
    for (auto& operand : operands) operand.values.reset_data();
  }

  std::string equation;
  std::vector<Operand> operands;
  c10::Scalar alpha;
  std::optional<at::ScalarType> accumulate_dtype;
  std::vector<int64_t> path;
};

at::Tensor einsum_autograd(c10::string_view equation, at::TensorList operands,
                           const c10::Scalar& alpha, c10::string_view layout,
                           std::optional<at::ScalarType> accumulate_dtype,
                           at::OptionalIntArrayRef path) {
  const std::string text(equation);
  const EinsumOptions options{alpha, std::string(layout), accumulate_dtype, path};
  NodePtr owner;
  auto* node = record<EinsumBackward>(owner, operands);
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return einsum(text, operands, options);
  }();
  if (node != nullptr && !torch::autograd::isDifferentiableType(result.scalar_type()))
    node = nullptr;
  if (node != nullptr) {
    torch::autograd::set_history(result, owner);
    node->equation = text;
    node->alpha = alpha;
    node->accumulate_dtype = accumulate_dtype;
    if (path) node->path.assign(path->begin(), path->end());
    for (size_t i = 0; i < operands.size(); ++i) {
      node->operands.emplace_back();
      node->operands[i].sizes = operands[i].sym_sizes().vec();
      node->operands[i].dtype = operands[i].scalar_type();
      for (size_t other = 0; other < operands.size(); ++other) {
        if (other != i && operands[other].requires_grad()) node->operands[i].is_saved = true;
      }
      if (node->operands[i].is_saved) {
        node->operands[i].values = SavedVariable(operands[i], /*is_output=*/false);
      }
    }
  }
  at::Tensor tangent;
  for (size_t i = 0; i < operands.size(); ++i) {
    if (!has_tangent(operands[i])) continue;
    std::vector<at::Tensor> factors;
    for (const auto& operand : operands) factors.push_back(primal_of(operand));
    factors[i] = tangent_of(operands[i]);
    const at::Tensor part = einsum(text, factors, options);
    tangent = tangent.defined() ? tangent + part : part;
  }
  if (tangent.defined()) set_tangent(result, tangent);
  return result;
}

at::Tensor& einsum_out_autograd(c10::string_view equation, at::TensorList operands,
                                const c10::Scalar& alpha, const c10::Scalar& beta,
                                std::optional<at::ScalarType> accumulate_dtype,
                                at::OptionalIntArrayRef path, at::Tensor& out) {
  if (torch::autograd::compute_requires_grad(operands, out)) {
    torch::autograd::throw_error_out_requires_grad("einsum");
  }
  const at::AutoDispatchBelowAutograd guard;
  return einsum_out(std::string(equation), operands, beta,
                    {alpha, "contiguous", accumulate_dtype, path}, out);
}

at::Tensor& einsum_out_bumping_version(c10::string_view equation, at::TensorList operands,
                                       const c10::Scalar& alpha, const c10::Scalar& beta,
                                       std::optional<at::ScalarType> accumulate_dtype,
                                       at::OptionalIntArrayRef path, at::Tensor& out) {
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    einsum_out(std::string(equation), operands, beta, {alpha, "contiguous", accumulate_dtype, path},
               out);
  }
  torch::autograd::increment_version(out);
  return out;
}

TORCH_LIBRARY_IMPL(pyext, Autograd, m) {
  m.impl("einsum", einsum_autograd);
  m.impl("einsum.out", einsum_out_autograd);
}

TORCH_LIBRARY_IMPL(pyext, ADInplaceOrView, m) { m.impl("einsum.out", einsum_out_bumping_version); }

}  // namespace
}  // namespace pyext
