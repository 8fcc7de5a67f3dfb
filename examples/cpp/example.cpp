// Runs pyext's ops from C++, without Python: linking libpyext registers them with torch, and
// torch's dispatcher finds them by name. Exits with 1 when a result differs from torch's own.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/torch.h>

#include <iostream>
#include <map>
#include <string>
#include <vector>

// Calls an op by name. Arguments that are not given get the defaults of its schema.
torch::jit::Stack call(const std::string& op, const std::vector<c10::IValue>& arguments,
                       const std::map<std::string, c10::IValue>& named = {}) {
  const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(op.c_str(), "");
  torch::jit::Stack stack = arguments;
  for (size_t i = stack.size(); i < handle.schema().arguments().size(); ++i) {
    const auto& argument = handle.schema().arguments()[i];
    const auto given = named.find(argument.name());
    stack.push_back(given != named.end() ? given->second : argument.default_value().value());
  }
  handle.callBoxed(stack);
  return stack;  // the results
}

bool agrees(const std::string& what, const at::Tensor& ours, const at::Tensor& expected) {
  const double error = (ours - expected).abs().max().item<double>();
  std::cout << what << ": largest difference from torch " << error << "\n";
  return error < 1e-6;
}

int main() {
  torch::manual_seed(0);
  const auto x = torch::randn({64, 1000});
  const auto root = call("pyext::signed_sqrt", {x, 0.0})[0].toTensor();
  bool right = agrees("signed_sqrt", root, x.sign() * x.abs().sqrt());

  auto logits = torch::randn({64, 1000}, torch::requires_grad());
  const auto target = torch::randint(1000, {64});
  const auto loss =
      call("pyext::cross_entropy", {logits, target}, {{"label_smoothing", 0.1}})[0].toTensor();
  loss.backward();
  const auto gradient = logits.grad().clone();
  logits.mutable_grad().zero_();

  const auto expected = torch::nn::functional::cross_entropy(
      logits, target, torch::nn::functional::CrossEntropyFuncOptions().label_smoothing(0.1));
  expected.backward();
  right &= agrees("cross_entropy", loss, expected);
  right &= agrees("cross_entropy, gradient", gradient, logits.grad());

  // One step of Adam: its first one is the learning rate times the sign of the gradient.
  using Tensors = c10::List<at::Tensor>;
  auto parameter = torch::zeros({1000});
  const auto step = torch::ones({});
  call("pyext::fused_adam_",
       {Tensors({parameter}), Tensors({x[0]}), Tensors({torch::zeros({1000})}),
        Tensors({torch::zeros({1000})}), Tensors(), Tensors({step})},
       {{"lr", 0.1},
        {"beta1", 0.9},
        {"beta2", 0.999},
        {"weight_decay", 0.0},
        {"eps", 0.0},
        {"amsgrad", false},
        {"maximize", false}});
  right &= agrees("fused_adam_", parameter, -0.1 * x[0].sign());
  std::cout << (right ? "all agree" : "something differs") << "\n";
  return right ? 0 : 1;
}
