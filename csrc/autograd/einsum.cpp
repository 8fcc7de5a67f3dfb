// Derivatives of einsum: those of a contraction are contractions. The gradient in an operand is the
// einsum of the result's gradient, in the operand's place, and the other operands; so there is no
// backward op, and derivatives of every order are exact.
#include "einsum.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>

#include "autograd/functionalize.h"
#include "autograd/node.h"

namespace pyext {
namespace {

// The labels of an equation for operands of these ranks; sizes may be symbols.
Expression labels_of(const std::string& equation, at::TensorList operands) {
  std::vector<std::vector<int64_t>> ones;
  for (const auto& operand : operands) ones.emplace_back(operand.dim(), 1);
  return parse_equation(equation, {ones.begin(), ones.end()});
}

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

  variable_list gradients(variable_list&& grads) override {
    variable_list result(operands.size());
    if (!grads[0].defined()) return result;
    std::vector<at::Tensor> values;
    for (const auto& operand : operands) values.push_back(unpack(operand));
    const Expression expression = labels_of(equation, values);
    for (size_t i = 0; i < values.size(); ++i) {
      if (task_should_compute_output(i)) result[i] = gradient(i, grads[0], values, expression);
    }
    return result;
  }

  at::Tensor gradient(size_t target, const at::Tensor& grad, const std::vector<at::Tensor>& values,
                      const Expression& expression) const {
    const auto has = [](const Labels& labels, Label label) {
      return std::find(labels.begin(), labels.end(), label) != labels.end();
    };
    Labels given = expression.output, wanted;
    at::Tensor cotangent = grad;
    const at::Tensor& operand = values[target];
    const Labels& labels = expression.inputs[target];
    const auto sizes = operand.sym_sizes();
    const auto known = [&](Label label) {
      for (size_t i = 0; i < values.size(); ++i) {
        if (i != target && has(expression.inputs[i], label)) return true;
      }
      return has(given, label);
    };
    std::vector<int64_t> absent;  // dimensions that the contraction does not give
    for (size_t d = 0; d < labels.size(); ++d) {
      const bool repeated = std::count(labels.begin(), labels.end(), labels[d]) > 1;
      if (!known(labels[d]) && repeated) {  // the trace: its gradient is a diagonal of equal values
        given.push_back(labels[d]);
        auto expanded = cotangent.sym_sizes().vec();
        expanded.push_back(sizes[d]);
        cotangent = cotangent.unsqueeze(-1).expand_symint(expanded);
      }
      if (!known(labels[d]) || sizes[d] == 1) {  // broadcast: there or here
        absent.push_back(static_cast<int64_t>(d));
      } else {
        wanted.push_back(labels[d]);
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
    if (!operand.is_complex() && result.is_complex()) result = at::real(result);
    return result.to(operand.scalar_type());
  }

  void release_variables() override {
    for (auto& operand : operands) operand.reset_data();
  }

  std::string equation;
  std::vector<SavedVariable> operands;
  c10::Scalar alpha;
  std::optional<at::ScalarType> accumulate_dtype;
  std::vector<int64_t> path;
};

EinsumOptions options_of(const c10::Scalar& alpha, c10::string_view layout,
                         std::optional<at::ScalarType> accumulate_dtype,
                         at::OptionalIntArrayRef path) {
  return {alpha, std::string(layout), accumulate_dtype, path};
}

at::Tensor functional(c10::string_view equation, at::TensorList operands, const c10::Scalar& alpha,
                      c10::string_view layout, std::optional<at::ScalarType> accumulate_dtype,
                      at::OptionalIntArrayRef path) {
  const std::string text(equation);
  const EinsumOptions options = options_of(alpha, layout, accumulate_dtype, path);
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
    for (const auto& operand : operands) {
      node->operands.emplace_back(operand, /*is_output=*/false);
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

at::Tensor& out(c10::string_view equation, at::TensorList operands, const c10::Scalar& alpha,
                const c10::Scalar& beta, std::optional<at::ScalarType> accumulate_dtype,
                at::OptionalIntArrayRef path, at::Tensor& out) {
  if (torch::autograd::compute_requires_grad(operands, out)) {
    torch::autograd::throw_error_out_requires_grad("einsum");
  }
  const at::AutoDispatchBelowAutograd guard;
  return einsum_out(std::string(equation), operands, beta,
                    options_of(alpha, "contiguous", accumulate_dtype, path), out);
}

at::Tensor& out_bumping_version(c10::string_view equation, at::TensorList operands,
                                const c10::Scalar& alpha, const c10::Scalar& beta,
                                std::optional<at::ScalarType> accumulate_dtype,
                                at::OptionalIntArrayRef path, at::Tensor& out) {
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    einsum_out(std::string(equation), operands, beta,
               options_of(alpha, "contiguous", accumulate_dtype, path), out);
  }
  torch::autograd::increment_version(out);
  return out;
}

at::Tensor& out_functionalized(c10::string_view equation, at::TensorList operands,
                               const c10::Scalar& alpha, const c10::Scalar& beta,
                               std::optional<at::ScalarType> accumulate_dtype,
                               at::OptionalIntArrayRef path, at::Tensor& out) {
  const std::string text(equation);
  const EinsumOptions options = options_of(alpha, "contiguous", accumulate_dtype, path);
  std::vector<at::Tensor> inputs = operands.vec();
  inputs.push_back(out);
  return functionalize_into(out, inputs, [&](at::TensorList x) {
    at::Tensor sum = einsum(text, x.slice(0, x.size() - 1), options);
    return beta.equal(0) ? sum : sum + beta * x.back();
  });
}

// As torch's matrix products: operands of a wider type are cast to the type of autocast.
template <c10::DeviceType device, c10::DispatchKey key>
at::Tensor with_autocast(c10::string_view equation, at::TensorList operands,
                         const c10::Scalar& alpha, c10::string_view layout,
                         std::optional<at::ScalarType> accumulate_dtype,
                         at::OptionalIntArrayRef path) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKeySet{key});
  const auto dtype = at::autocast::get_autocast_dtype(device);
  return einsum(std::string(equation), at::autocast::cached_cast(dtype, operands, device),
                options_of(alpha, layout, accumulate_dtype, path));
}

TORCH_LIBRARY_IMPL(pyext, Autograd, m) {
  m.impl("einsum", functional);
  m.impl("einsum.out", out);
}

TORCH_LIBRARY_IMPL(pyext, ADInplaceOrView, m) { m.impl("einsum.out", out_bumping_version); }

TORCH_LIBRARY_IMPL(pyext, Functionalize, m) { m.impl("einsum.out", out_functionalized); }

TORCH_LIBRARY_IMPL(pyext, AutocastCPU, m) {
  m.impl("einsum", with_autocast<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>);
}

TORCH_LIBRARY_IMPL(pyext, AutocastCUDA, m) {
  m.impl("einsum", with_autocast<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>);
}

}  // namespace
}  // namespace pyext
