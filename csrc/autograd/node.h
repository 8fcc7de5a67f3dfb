// How an op of pyext records its derivative: the way ATen's generated code does it, with a
// torch::autograd::Node of its own at the Autograd key. That gives backward, double backward,
// forward mode and every torch.func transform; a C++ autograd::Function or a Python one does not.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>
#include <string>
#include <type_traits>
#include <utility>

namespace pyext {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// c10::intrusive_ptr<Node> since torch 2.13, std::shared_ptr<Node> before.
using NodePtr = decltype(torch::autograd::Edge::function);

// A node of the graph. A derived class saves what it needs and overrides `gradients`.
struct OpNode : Node {
  explicit OpNode(const char* name) : name_(name) {}
  std::string name() const override { return name_; }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return gradients(std::move(grads));
  }

  // One gradient per recorded input; an undefined tensor stands for zero, on both sides.
  virtual variable_list gradients(variable_list&& grads) = 0;

  at::Tensor unpack(const SavedVariable& saved) { return saved.unpack(getptr()); }

 private:
  const char* name_;
};

// The node if any of the inputs requires a gradient, else null.
template <typename NodeType, typename... Inputs>
NodeType* record(NodePtr& owner, const Inputs&... inputs) {
  if (!torch::autograd::compute_requires_grad(inputs...)) return nullptr;
  if constexpr (std::is_same_v<NodePtr, std::shared_ptr<Node>>) {
    // deleteNode (found by its argument) frees long graphs without deep recursion.
    owner = NodePtr(new NodeType(), [](auto* node) { deleteNode(node); });
  } else {
    owner = c10::make_intrusive<NodeType>();
  }
  owner->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  return static_cast<NodeType*>(owner.get());
}

// Whether a call below the Autograd key would go straight to the CPU kernel: no mode, subclass,
// transform or tracer is interested. Only then may a derivative look at values or skip the
// dispatcher.
inline bool is_plain_cpu(const at::Tensor& x) {
  const auto tls = c10::impl::tls_local_dispatch_key_set();
  const auto below =
      c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::ADInplaceOrView)
          .remove(c10::DispatchKey::BackendSelect);
  const auto keys = ((x.key_set() | tls.included_) - tls.excluded_) & below;
  return keys.highestPriorityTypeId() == c10::DispatchKey::CPU;
}

inline bool has_tangent(const at::Tensor& x) { return torch::autograd::isFwGradDefined(x); }
inline at::Tensor tangent_of(const at::Tensor& x) { return x._fw_grad(/*level=*/0); }
// The value without its tangent: what the formula of a tangent is made of.
inline at::Tensor primal_of(const at::Tensor& x) { return has_tangent(x) ? x._fw_primal(0) : x; }
inline void set_tangent(const at::Tensor& x, const at::Tensor& tangent, bool in_place = false) {
  x._set_fw_grad(tangent, /*level=*/0, in_place);
}

}  // namespace pyext
