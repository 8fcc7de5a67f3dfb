// Sums over all elements in float64: of a block by its threads, into memory; then of all blocks by
// one, in an order that the sizes of the tensors alone decide.
#pragma once

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdint>

namespace pyext {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kSumThreads = 1024;

template <int kCount>
struct Sums {
  double of[kCount] = {};

  __device__ void add(const Sums& other) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) of[i] += other.of[i];
  }

  __device__ void join_lanes() {
    for (int d = kWarp / 2; d > 0; d /= 2) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) of[i] += __shfl_xor_sync(kAllLanes, of[i], d);
    }
  }

  // Leaves the sum over a block in its thread 0. All of the block must call.
  template <int kBlock>
  __device__ void join_block() {
    constexpr int kWarps = kBlock / kWarp;
    const int thread = static_cast<int>(threadIdx.x);
    __shared__ double warps[kCount][kWarps];
    join_lanes();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (thread % kWarp == 0) warps[i][thread / kWarp] = of[i];
    }
    __syncthreads();
    if (thread >= kWarp) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) of[i] = thread < kWarps ? warps[i][thread] : 0.0;
    join_lanes();
  }
};

template <int kCount>
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const Sums<kCount>* parts, int64_t count, bool adds, double* to) {
  const int thread = static_cast<int>(threadIdx.x);
  Sums<kCount> sums;
#pragma unroll 4
  for (int64_t i = thread; i < count; i += kSumThreads) sums.add(parts[i]);
  sums.template join_block<kSumThreads>();
  if (thread != 0) return;
  for (int i = 0; i < kCount; ++i) to[i] = (adds ? to[i] : 0.0) + sums.of[i];
}

// Memory for the sums of blocks, to be handed out launch by launch.
template <int kCount>
class PartialSums {
 public:
  explicit PartialSums(int64_t blocks)
      : memory_(at::empty({blocks, kCount}, at::TensorOptions(at::kCUDA).dtype(at::kDouble))) {}

  Sums<kCount>* take(int64_t blocks) {
    taken_ += blocks;
    return first() + (taken_ - blocks);
  }

  // Writes, or adds, the sums of what was taken.
  void finish(bool adds, double* to) const {
    sum_kernel<kCount>
        <<<1, kSumThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(first(), taken_, adds, to);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  Sums<kCount>* first() const { return static_cast<Sums<kCount>*>(memory_.data_ptr()); }

  at::Tensor memory_;
  int64_t taken_ = 0;
};

}  // namespace
}  // namespace pyext
