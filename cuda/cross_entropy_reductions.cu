// The reductions of cross_entropy over the rows of a batch: the scales of a mean, and the sum of
// the losses. A kernel each, or two for many rows, where ATen ops would be ten; at a thousand
// classes these would take longer than the logits. Sums are of double, in an order that the number
// of rows alone decides.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdint>

#include "cross_entropy_problem.h"

namespace pyext {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 1024;
constexpr int kBlocks = 256;
constexpr int64_t kOneBlock = 1 << 14;  // terms that one block sums as soon as two kernels would

struct Pair {
  double a = 0, b = 0;
  __device__ void add(const Pair& other) {
    a += other.a;
    b += other.b;
  }
};

// Calls store(block, sum of term(i) over the i of this block).
template <typename Term, typename Store>
__global__ void __launch_bounds__(kThreads) sum_kernel(int64_t count, Term term, Store store) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  Pair sum;
#pragma unroll 4
  for (int64_t i = int64_t{blockIdx.x} * kThreads + thread; i < count; i += stride) {
    sum.add(term(i));
  }
  const auto join_lanes = [&sum] {
    for (int d = kWarp / 2; d > 0; d /= 2) {
      sum.add({__shfl_xor_sync(0xffffffffu, sum.a, d), __shfl_xor_sync(0xffffffffu, sum.b, d)});
    }
  };
  join_lanes();
  __shared__ double warps[2][kThreads / kWarp];
  if (thread % kWarp == 0) {
    warps[0][thread / kWarp] = sum.a;
    warps[1][thread / kWarp] = sum.b;
  }
  __syncthreads();
  if (thread >= kWarp) return;
  sum = {warps[0][thread], warps[1][thread]};
  join_lanes();
  if (thread == 0) store(blockIdx.x, sum);
}

template <typename Term, typename Store>
void sum(int64_t count, const Term& term, const Store& store) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  if (count <= kOneBlock) {
    sum_kernel<<<1, kThreads, 0, stream>>>(count, term, store);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return;
  }
  const auto memory = at::empty({kBlocks, 2}, at::TensorOptions(at::kCUDA).dtype(at::kDouble));
  auto* parts = static_cast<Pair*>(memory.data_ptr());
  const auto store_part = [parts] __device__(int64_t block, const Pair& part) {
    parts[block] = part;
  };
  const auto part_at = [parts] __device__(int64_t block) { return parts[block]; };
  sum_kernel<<<kBlocks, kThreads, 0, stream>>>(count, term, store_part);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  sum_kernel<<<1, kThreads, 0, stream>>>(kBlocks, part_at, store);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void write_scales(const CrossEntropyProblem& p, T* scales) {
  const auto* weight = static_cast<const T*>(p.weight);
  const auto* a = p.target;
  const auto* b = p.target_b;
  const int64_t ignore_index = p.ignore_index, last = p.classes - 1;
  const auto term = [=] __device__(int64_t row) -> Pair {
    // An index out of range must not be read with; its row gives NaN.
    const auto mass = [=](const int64_t* target) {
      const int64_t y = target[row];
      if (y == ignore_index) return 0.0;
      return weight != nullptr ? static_cast<double>(weight[y < 0 ? 0 : y > last ? last : y]) : 1.0;
    };
    return {mass(a), b != nullptr ? mass(b) : 0.0};
  };
  sum(p.rows, term, [=] __device__(int64_t, const Pair& masses) {
    scales[0] = static_cast<T>(1.0 / masses.a);
    scales[1] = b != nullptr ? static_cast<T>(1.0 / masses.b) : scales[0];
  });
}

__device__ void store_as(void* to, at::ScalarType dtype, double value) {
  switch (dtype) {
    case at::kFloat:
      *static_cast<float*>(to) = static_cast<float>(value);
      return;
    case at::kDouble:
      *static_cast<double*>(to) = value;
      return;
    case at::kHalf:
      *static_cast<at::Half*>(to) = static_cast<float>(value);
      return;
    default:
      *static_cast<at::BFloat16*>(to) = static_cast<float>(value);
  }
}

// Adding 0 * scale makes the mean of nothing, or of rows that are all ignored, NaN: the scale is
// infinite there.
template <typename T>
void write_total(const CrossEntropyProblem& p, const T* loss_rows, void* out,
                 at::ScalarType dtype) {
  const auto* scales = static_cast<const T*>(p.scales);
  const auto term = [=] __device__(int64_t row) -> Pair { return {loss_rows[row], 0.0}; };
  sum(p.rows, term, [=] __device__(int64_t, const Pair& total) {
    store_as(out, dtype, total.a + 0.0 * scales[0] + 0.0 * scales[1]);
  });
}

void scales_kernel(const CrossEntropyProblem& p, void* scales) {
  if (p.dtype == at::kDouble) {
    write_scales(p, static_cast<double*>(scales));
  } else {
    write_scales(p, static_cast<float*>(scales));
  }
}

void total_kernel(const CrossEntropyProblem& p, const void* loss_rows, void* out,
                  at::ScalarType dtype) {
  if (p.dtype == at::kDouble) {
    write_total(p, static_cast<const double*>(loss_rows), out, dtype);
  } else {
    write_total(p, static_cast<const float*>(loss_rows), out, dtype);
  }
}

const RegisterKernel scales(cross_entropy_scales_stub, at::kCUDA, &scales_kernel);
const RegisterKernel total(cross_entropy_total_stub, at::kCUDA, &total_kernel);

}  // namespace
}  // namespace pyext
