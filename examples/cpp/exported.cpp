// Runs a model with pyext's ops that Python has exported, without Python:
//   python examples/cpp/export.py model && pyext_exported model
// AOTInductor has compiled what is torch's own; our ops it finds in the dispatcher, where libpyext
// has registered them. Exits with 1 when a result differs from that of Python.
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

// The list of tensors that torch.save has written.
std::vector<at::Tensor> load(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(stream), {});
  const auto values = torch::jit::pickle_load(bytes);
  std::vector<at::Tensor> tensors;
  for (const auto& value : values.toListRef()) tensors.push_back(value.toTensor());
  return tensors;
}

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: pyext_exported FOLDER, which examples/cpp/export.py has written\n";
    return 2;
  }
  const std::string folder = arguments[1];
  torch::inductor::AOTIModelPackageLoader model(folder + "/model.pt2");
  const auto results = model.run(load(folder + "/arguments.pt"));
  const auto expected = load(folder + "/results.pt");
  bool right = results.size() == expected.size();
  for (size_t i = 0; right && i < results.size(); ++i) {
    std::cout << "result " << i << ": largest difference from Python "
              << (results[i] - expected[i]).abs().max().item<double>() << "\n";
    right = at::allclose(results[i], expected[i], 1e-4, 1e-5);
  }
  std::cout << (right ? "all agree" : "something differs") << "\n";
  return right ? 0 : 1;
}
