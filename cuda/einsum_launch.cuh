// How the kernels of einsum are launched, and where they find scratch memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdint>
#include <limits>

namespace pyext {
namespace {

constexpr int kThreads = 256;

inline at::Device current_device() { return {at::kCUDA, c10::cuda::current_device()}; }

inline at::Tensor scratch(int64_t elements, at::ScalarType dtype) {
  return at::empty({elements}, at::TensorOptions(current_device()).dtype(dtype));
}

template <typename Arguments>
void launch(void (*kernel)(Arguments), int64_t blocks, int64_t pieces, const Arguments& arguments) {
  TORCH_INTERNAL_ASSERT(blocks <= std::numeric_limits<int32_t>::max());
  const dim3 grid(static_cast<uint32_t>(blocks), static_cast<uint32_t>(pieces));
  kernel<<<grid, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(arguments);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace pyext
