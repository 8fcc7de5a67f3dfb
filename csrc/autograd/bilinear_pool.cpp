// Derivatives of bilinear_pool and of its backward. The first derivative in backward mode is an op
// with a kernel of its own; forward mode and higher derivatives are those of the formulas below,
// written in differentiable ops.
#include "bilinear_pool.h"

#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include "autograd/autocast.h"
#include "autograd/pooling.h"
#include "signed_sqrt.h"

namespace pyext {
namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

struct Arguments {
  std::optional<double> scale;
  double eps;
  bool signed_sqrt, l2, packed, center;

  Pair forward(const at::Tensor& x, const OptionalTensor& y) const {
    return bilinear_pool(x, y, scale, eps, signed_sqrt, l2, packed, center);
  }
  Pair backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& y,
                const at::Tensor& result, const at::Tensor& norm) const {
    return bilinear_pool_backward(grad, x, y, result, norm, scale, eps, signed_sqrt, l2, packed,
                                  center);
  }
};

// The op by its definition, with what its gradient needs.
struct BilinearPoolFormula {
  BilinearPoolFormula(const at::Tensor& x_, const at::Tensor& y_, const Arguments& arguments_)
      : arguments(arguments_),
        x(features_of(x_, arguments.center)),
        y(y_.defined() ? features_of(y_, arguments.center) : x),
        symmetric(!y_.defined()),
        dtype(x_.scalar_type()) {
    root = scaled(at::bmm(x, y.transpose(1, 2)));
    if (arguments.signed_sqrt) root = signed_sqrt(root, arguments.eps);
    const auto kept = arguments.packed ? pack_triangle(root) : root;
    norm =
        arguments.l2
            ? at::linalg_vector_norm(kept.flatten(1), 2, at::IntArrayRef{1}).clamp_min(kLeastNorm)
            : at::ones_symint({x.sym_size(0)}, x.options());
    result = kept / per_sample(norm, kept);
  }

  static at::Tensor per_sample(const at::Tensor& values, const at::Tensor& like) {
    return like.dim() == 2 ? values.unsqueeze(1) : values.unsqueeze(1).unsqueeze(2);
  }

  at::Tensor scaled(const at::Tensor& products) const {
    return arguments.scale ? products * *arguments.scale : products / c10::Scalar(x.sym_size(2));
  }

  Pair outputs() const { return {result.to(dtype), norm.detach()}; }

  Pair gradients(const at::Tensor& grad_) const {
    auto grad = grad_.to(result.scalar_type());
    if (arguments.l2) {
      auto along = (grad * result).flatten(1).sum(1);
      along = at::where(norm > kLeastNorm, along, 0);
      grad = (grad - result * per_sample(along, result)) / per_sample(norm, result);
    }
    const auto d = x.sym_size(1).guard_int(__FILE__, __LINE__);
    if (arguments.packed) grad = spread_triangle(grad, d);
    if (arguments.signed_sqrt) grad = signed_sqrt_backward(grad, root);
    grad = scaled(grad);
    if (arguments.packed) {
      grad = grad * diagonal_and_other(d, 2, kSqrtTwo, grad.options());
    } else if (symmetric) {
      grad = grad + grad.transpose(1, 2);
    }
    const auto of_x = at::bmm(grad, y).to(dtype);
    return {of_x, symmetric ? at::empty({0}, of_x.options())
                            : at::bmm(grad.transpose(1, 2), x).to(dtype)};
  }

  Arguments arguments;
  at::Tensor x, y;
  bool symmetric;
  at::ScalarType dtype;
  at::Tensor root, norm, result;
};

struct BilinearPoolBackward : OpNode {
  BilinearPoolBackward() : OpNode("BilinearPoolBackward") {}

  variable_list gradients(variable_list&& grads) override {
    variable_list out(2);
    if (!grads[0].defined()) return out;
    const auto second = unpack(y);
    auto [of_x, of_y] = arguments.backward(grads[0], unpack(x),
                                           second.defined() ? OptionalTensor(second) : std::nullopt,
                                           unpack(result), unpack(norm));
    out[0] = std::move(of_x);
    if (second.defined()) out[1] = std::move(of_y);
    return out;
  }

  void release_variables() override {
    for (auto* variable : {&x, &y, &result, &norm}) variable->reset_data();
  }

  Arguments arguments;
  SavedVariable x, y, result, norm;
};

Pair bilinear_pool_autograd(const at::Tensor& x, const OptionalTensor& y_,
                            std::optional<double> scale, double eps, bool signed_sqrt, bool l2,
                            bool packed, bool center) {
  const Arguments arguments{scale, eps, signed_sqrt, l2, packed, center};
  const auto y = y_.value_or(at::Tensor());
  if (has_tangent(x) || (y.defined() && has_tangent(y))) {
    return BilinearPoolFormula(x, y, arguments).outputs();
  }
  NodePtr owner;
  auto* node = record<BilinearPoolBackward>(owner, x, y);
  auto out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return arguments.forward(x, y_);
  }();
  if (node != nullptr) {
    torch::autograd::set_history(std::get<0>(out), owner);
    node->arguments = arguments;
    node->x = SavedVariable(x, /*is_output=*/false);
    node->y = SavedVariable(y, /*is_output=*/false);
    node->result = SavedVariable(std::get<0>(out), /*is_output=*/true);
    node->norm = SavedVariable(std::get<1>(out), /*is_output=*/false);
  }
  return out;
}

// The derivative is taken through x and y: result and norm are functions of them.
Pair bilinear_pool_backward_autograd(const at::Tensor& grad, const at::Tensor& x,
                                     const OptionalTensor& y_, const at::Tensor& result,
                                     const at::Tensor& norm, std::optional<double> scale,
                                     double eps, bool signed_sqrt, bool l2, bool packed,
                                     bool center) {
  const Arguments arguments{scale, eps, signed_sqrt, l2, packed, center};
  const auto y = y_.value_or(at::Tensor());
  auto value = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return arguments.backward(grad, x, y_, result, norm);
  }();
  if (!is_derived(grad) && !is_derived(x) && !is_derived(y)) return value;
  const auto [of_x, of_y] = BilinearPoolFormula(x, y, arguments).gradients(grad);
  return {with_derivatives_of(of_x, std::get<0>(value)),
          with_derivatives_of(of_y, std::get<1>(value))};
}

// As torch's matrix products: features of a wider type are cast to the type of autocast.
template <c10::DeviceType device, c10::DispatchKey key>
Pair bilinear_pool_autocast(const at::Tensor& x, const OptionalTensor& y,
                            std::optional<double> scale, double eps, bool signed_sqrt, bool l2,
                            bool packed, bool center) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKeySet{key});
  return bilinear_pool(autocast(x, device), autocast(y, device), scale, eps, signed_sqrt, l2,
                       packed, center);
}

TORCH_LIBRARY_IMPL(pyext, Autograd, m) {
  m.impl("bilinear_pool", bilinear_pool_autograd);
  m.impl("bilinear_pool_backward", bilinear_pool_backward_autograd);
}

TORCH_LIBRARY_IMPL(pyext, AutocastCPU, m) {
  m.impl("bilinear_pool",
         bilinear_pool_autocast<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>);
}

TORCH_LIBRARY_IMPL(pyext, AutocastCUDA, m) {
  m.impl("bilinear_pool",
         bilinear_pool_autocast<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>);
}

}  // namespace
}  // namespace pyext
