// Derivatives of compact_bilinear_pool and of its backward. The first derivative in backward mode
// is an op with a kernel of its own; forward mode and higher derivatives are those of the formulas
// below, written in differentiable ops.
#include "compact_bilinear_pool.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "autograd/autocast.h"
#include "autograd/pooling.h"

namespace pyext {
namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

OptionalTensor optional(const at::Tensor& x) {
  return x.defined() ? OptionalTensor(x) : std::nullopt;
}

// The op by its definition: a signed scatter of products of channels; its gradient gathers.
struct CompactBilinearPoolFormula {
  CompactBilinearPoolFormula(const at::Tensor& x_, const at::Tensor& y_, const Sketches& sketches,
                             int64_t output_dim_)
      : x(features_of(x_, /*center=*/false)),
        y(y_.defined() ? features_of(y_, /*center=*/false) : x),
        symmetric(!y_.defined()),
        dtype(x_.scalar_type()),
        output_dim(output_dim_),
        places((sketches.hash1.unsqueeze(1) + sketches.hash2.unsqueeze(0))
                   .remainder(output_dim)
                   .flatten()),
        signs(sketches.sign1.unsqueeze(1).to(x.scalar_type()) *
              sketches.sign2.unsqueeze(0).to(x.scalar_type())) {}

  at::Tensor result() const {
    const auto products = (at::bmm(x, y.transpose(1, 2)) * signs).flatten(1);
    const auto zeros = at::zeros_symint({x.sym_size(0), output_dim}, x.options());
    return zeros.index_add(1, places, products).to(dtype);
  }

  Pair gradients(const at::Tensor& grad) const {
    const auto shape = std::vector<c10::SymInt>{x.sym_size(0), x.sym_size(1), y.sym_size(1)};
    auto products = grad.to(x.scalar_type()).index_select(1, places).view_symint(shape) * signs;
    if (symmetric) products = products + products.transpose(1, 2);
    const auto of_x = at::bmm(products, y).to(dtype);
    return {of_x, symmetric ? at::empty({0}, of_x.options())
                            : at::bmm(products.transpose(1, 2), x).to(dtype)};
  }

  at::Tensor x, y;
  bool symmetric;
  at::ScalarType dtype;
  int64_t output_dim;
  at::Tensor places, signs;
};

struct CompactBilinearPoolBackward : OpNode {
  CompactBilinearPoolBackward() : OpNode("CompactBilinearPoolBackward") {}

  variable_list gradients(variable_list&& grads) override {
    variable_list out(2);
    if (!grads[0].defined()) return out;
    const auto second = unpack(y);
    auto [of_x, of_y] = compact_bilinear_pool_backward(
        grads[0], unpack(x), optional(second),
        {unpack(hash1), unpack(sign1), unpack(hash2), unpack(sign2)});
    out[0] = std::move(of_x);
    if (second.defined()) out[1] = std::move(of_y);
    return out;
  }

  void release_variables() override {
    for (auto* variable : {&x, &y, &hash1, &sign1, &hash2, &sign2}) variable->reset_data();
  }

  SavedVariable x, y, hash1, sign1, hash2, sign2;
};

void check_differentiable(const Sketches& sketches) {
  torch::autograd::check_no_requires_grad(sketches.sign1, "sign1", "compact_bilinear_pool");
  torch::autograd::check_no_requires_grad(sketches.sign2, "sign2", "compact_bilinear_pool");
}

at::Tensor compact_bilinear_pool_autograd(const at::Tensor& x, const OptionalTensor& y_,
                                          const at::Tensor& hash1, const at::Tensor& sign1,
                                          const at::Tensor& hash2, const at::Tensor& sign2,
                                          int64_t output_dim) {
  const Sketches sketches{hash1, sign1, hash2, sign2};
  check_differentiable(sketches);
  const auto y = y_.value_or(at::Tensor());
  if (has_tangent(x) || (y.defined() && has_tangent(y))) {
    return CompactBilinearPoolFormula(x, y, sketches, output_dim).result();
  }
  NodePtr owner;
  auto* node = record<CompactBilinearPoolBackward>(owner, x, y);
  auto out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return compact_bilinear_pool(x, y_, sketches, output_dim);
  }();
  if (node != nullptr) {
    torch::autograd::set_history(out, owner);
    node->x = SavedVariable(x, /*is_output=*/false);
    node->y = SavedVariable(y, /*is_output=*/false);
    node->hash1 = SavedVariable(hash1, /*is_output=*/false);
    node->sign1 = SavedVariable(sign1, /*is_output=*/false);
    node->hash2 = SavedVariable(hash2, /*is_output=*/false);
    node->sign2 = SavedVariable(sign2, /*is_output=*/false);
  }
  return out;
}

Pair compact_bilinear_pool_backward_autograd(const at::Tensor& grad, const at::Tensor& x,
                                             const OptionalTensor& y_, const at::Tensor& hash1,
                                             const at::Tensor& sign1, const at::Tensor& hash2,
                                             const at::Tensor& sign2) {
  const Sketches sketches{hash1, sign1, hash2, sign2};
  check_differentiable(sketches);
  const auto y = y_.value_or(at::Tensor());
  auto value = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return compact_bilinear_pool_backward(grad, x, y_, sketches);
  }();
  if (!is_derived(grad) && !is_derived(x) && !is_derived(y)) return value;
  const auto output_dim = grad.sym_size(1).guard_int(__FILE__, __LINE__);
  const auto [of_x, of_y] = CompactBilinearPoolFormula(x, y, sketches, output_dim).gradients(grad);
  return {with_derivatives_of(of_x, std::get<0>(value)),
          with_derivatives_of(of_y, std::get<1>(value))};
}

// As torch's matrix products: features of a wider type are cast to the type of autocast.
template <c10::DeviceType device, c10::DispatchKey key>
at::Tensor compact_bilinear_pool_autocast(const at::Tensor& x, const OptionalTensor& y,
                                          const at::Tensor& hash1, const at::Tensor& sign1,
                                          const at::Tensor& hash2, const at::Tensor& sign2,
                                          int64_t output_dim) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKeySet{key});
  return compact_bilinear_pool(autocast(x, device), autocast(y, device),
                               {hash1, sign1, hash2, sign2}, output_dim);
}

TORCH_LIBRARY_IMPL(pyext, Autograd, m) {
  m.impl("compact_bilinear_pool", compact_bilinear_pool_autograd);
  m.impl("compact_bilinear_pool_backward", compact_bilinear_pool_backward_autograd);
}

TORCH_LIBRARY_IMPL(pyext, AutocastCPU, m) {
  m.impl("compact_bilinear_pool",
         compact_bilinear_pool_autocast<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>);
}

TORCH_LIBRARY_IMPL(pyext, AutocastCUDA, m) {
  m.impl("compact_bilinear_pool",
         compact_bilinear_pool_autocast<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>);
}

}  // namespace
}  // namespace pyext
