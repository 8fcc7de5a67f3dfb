// Apart from those who call it, since torch's header for it brings every operator along.
#include "autograd/autocast.h"

#include <ATen/autocast_mode.h>

namespace pyext {

at::Tensor autocast(const at::Tensor& x, c10::DeviceType device) {
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), x, device);
}

std::optional<at::Tensor> autocast(const std::optional<at::Tensor>& x, c10::DeviceType device) {
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), x, device);
}

std::vector<at::Tensor> autocast(at::TensorList xs, c10::DeviceType device) {
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), xs, device);
}

}  // namespace pyext
