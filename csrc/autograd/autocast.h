// What autocast does with the arguments of ops that it treats as torch's matrix products: floats of
// a wider type are cast to its own, those that require a gradient once per context.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace pyext {

at::Tensor autocast(const at::Tensor& x, c10::DeviceType device);
std::optional<at::Tensor> autocast(const std::optional<at::Tensor>& x, c10::DeviceType device);
std::vector<at::Tensor> autocast(at::TensorList xs, c10::DeviceType device);

}  // namespace pyext
