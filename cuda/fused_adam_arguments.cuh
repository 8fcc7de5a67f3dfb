// What a kernel of fused_adam is told: a list of tensors, by value. Kernel arguments need no memory
// of their own on the device and are kept by a captured CUDA graph; a launch holds as many tensors
// as fit, as in ATen's MultiTensorApply.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "fused_adam.h"

namespace pyext {
namespace {

// CUDA 12.1 raised the limit from 4 KB to 32 KB, but programs of CUDA 12 also run with drivers that
// do not know it.
#if CUDART_VERSION >= 13000
constexpr size_t kArgumentBytes = 32764;
#else
constexpr size_t kArgumentBytes = 4096;
#endif

constexpr int kThreads = 256;
constexpr int64_t kSmallestChunk = 4096;  // elements; few, so that small models occupy a GPU too
constexpr int64_t kMostChunks = 1 << 16;

// The elements that one block works on: whole tiles, runs of random bits and blocks of codes.
inline int64_t chunk_size(const AdamProblem& problem) {
  int64_t elements = 0, chunk = kSmallestChunk;
  for (const auto& tensor : problem.tensors) elements += tensor.numel;
  while (elements / chunk > kMostChunks) chunk *= 2;
  return chunk;
}

// An AdamTensor, but for the strides.
struct Record {
  void* data[AdamTensor::kOperands];
  int64_t numel;
  double ema_weight;
  const float* device_step;
  uint32_t parameter;
  uint32_t step;
  int32_t group;  // index into the groups of the launch
  AdamMaster master;
  at::ScalarType dtype[AdamTensor::kOperands];
  bool stochastic_moments;
};

// The part of a tensor that a block works on.
struct Place {
  int tensor;
  int64_t begin;
  int64_t end;
};

constexpr int kStridedOperands = AdamTensor::kEma + 1;  // scales are dense

template <int kTensors>
struct StrideTable {
  AdamOperand::Strides of[kTensors][kStridedOperands];  // none where `dims` is 0
};
struct NoStrides {};

// Not inlined: its divisions of 64 bits, once per operand and element, would compile for a minute.
__device__ __noinline__ int64_t strided_offset(const AdamOperand::Strides& strides,
                                               int64_t element) {
  return strides.offset(element);
}

template <bool kMayBeStrided>
struct TensorList {
  static constexpr size_t kBytesEach =
      sizeof(Record) + sizeof(uint32_t) + (kMayBeStrided ? sizeof(StrideTable<1>) : 0);
  static constexpr int kTensors = kArgumentBytes * 4 / 5 / kBytesEach;

  Record records[kTensors];
  uint32_t chunk_end[kTensors];  // chunks of this tensor and all before it
  std::conditional_t<kMayBeStrided, StrideTable<kTensors>, NoStrides> strides;
  int count = 0;
  int64_t chunk;

  explicit TensorList(int64_t chunk_size) : chunk(chunk_size) {}

  uint32_t blocks() const { return count == 0 ? 0 : chunk_end[count - 1]; }
  void clear() { count = 0; }

  // False, and nothing is done, where there is no room.
  bool add(const AdamTensor& from, int32_t group = 0) {
    if (count == kTensors) return false;
    Record& r = records[count];
    for (int k = 0; k < AdamTensor::kOperands; ++k) {
      r.data[k] = from.operands[k].data;
      r.dtype[k] = from.operands[k].dtype;
    }
    if constexpr (kMayBeStrided) {
      for (int k = 0; k < kStridedOperands; ++k) {
        const auto* strided = from.operands[k].strided;
        strides.of[count][k] = strided != nullptr ? *strided : AdamOperand::Strides{};
      }
    }
    r.numel = from.numel;
    r.ema_weight = from.ema_weight;
    r.device_step = from.device_step;
    r.parameter = from.parameter;
    r.step = from.step;
    r.group = group;
    r.master = from.master;
    r.stochastic_moments = from.stochastic_moments;
    chunk_end[count] = blocks() + static_cast<uint32_t>((from.numel + chunk - 1) / chunk);
    ++count;
    return true;
  }

  __device__ Place place_of(uint32_t block) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (block < chunk_end[middle]) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    const uint32_t before = low > 0 ? chunk_end[low - 1] : 0;
    const int64_t begin = (block - before) * chunk, end = begin + chunk;
    return {low, begin, end < records[low].numel ? end : records[low].numel};
  }

  __device__ bool is_strided(int tensor, int operand) const {
    if constexpr (kMayBeStrided) return strides.of[tensor][operand].dims > 0;
    return false;
  }

  __device__ int64_t offset(int tensor, int operand, int64_t element) const {
    if constexpr (kMayBeStrided) {
      if (is_strided(tensor, operand)) return strided_offset(strides.of[tensor][operand], element);
    }
    return element;
  }
};

// What an AdamProblem leaves for the device to find out.
struct Conditions {
  const float* grad_scale;
  const float* found_inf;
  const AdamNorm* norm;
  double max_grad_norm;
  bool skip_nonfinite;

  __device__ bool skip() const {
    if (found_inf != nullptr && *found_inf != 0) return true;
    return skip_nonfinite && norm != nullptr && norm->poison != norm->poison;
  }

  __device__ double grad_factor() const {
    const double unscale = grad_scale != nullptr ? 1 / double{*grad_scale} : 1.0;
    if (norm == nullptr || max_grad_norm == 0) return unscale;
    return unscale * clip_factor(max_grad_norm, ::sqrt(norm->square_sum) * unscale);
  }
};

// The numbers of a step as a block knows them.
template <typename T>
struct StepNumbers {
  AdamCoefficients<T> coefficients;
  uint32_t step;  // names random bits
  bool skip;
};

template <typename T>
struct Group {
  AdamCoefficients<T> coefficients;
  double grad_factor;  // of the coefficients, not rounded
  AdamOptions options;
  const float* device_lr;
  int32_t index;  // in AdamProblem::groups
};

// `T`: of the arithmetic.
template <typename T, bool kMayBeStrided>
struct StepArguments {
  using Scalar = T;
  static constexpr int kGroups = kArgumentBytes / 6 / sizeof(Group<double>);

  TensorList<kMayBeStrided> list;
  Group<T> groups[kGroups];
  int group_count = 0;
  uint64_t seed;
  Conditions conditions;
  bool zero_grad;

  StepArguments(const AdamProblem& p, int64_t chunk_size)
      : list(chunk_size),
        seed(p.seed),
        conditions{p.grad_scale, p.found_inf, p.norm, p.max_grad_norm, p.skip_nonfinite},
        zero_grad(p.zero_grad) {}

  uint32_t blocks() const { return list.blocks(); }
  void clear() {
    list.clear();
    group_count = 0;
  }

  bool add(const AdamProblem& problem, const AdamTensor& tensor) {
    const auto* known = std::find_if(groups, groups + group_count,
                                     [&](const auto& g) { return g.index == tensor.group; });
    const int slot = static_cast<int>(known - groups);
    if (slot == kGroups || !list.add(tensor, slot)) return false;
    if (slot == group_count) {
      const AdamGroup& from = problem.groups[tensor.group];
      groups[group_count++] = {cast(from.coefficients), from.coefficients.grad_factor, from.options,
                               from.device_lr, tensor.group};
    }
    return true;
  }

  // All of a block must call. One thread works the numbers out: powers of double cost as much as
  // hundreds of elements.
  __device__ void read_numbers(const Record& r, StepNumbers<T>& shared) const {
    if (threadIdx.x == 0) {
      const Group<T>& group = groups[r.group];
      const double factor = conditions.grad_factor();
      shared.skip = conditions.skip();
      shared.step = r.device_step != nullptr ? static_cast<uint32_t>(*r.device_step) : r.step;
      if (r.device_step == nullptr && group.device_lr == nullptr) {
        shared.coefficients = group.coefficients;
        shared.coefficients.grad_factor = static_cast<T>(group.grad_factor * factor);
      } else {
        const double lr = group.device_lr != nullptr ? *group.device_lr : group.options.lr;
        shared.coefficients = adam_coefficients<T>(group.options, lr, shared.step, factor);
      }
    }
    __syncthreads();
  }

 private:
  static AdamCoefficients<T> cast(const AdamCoefficients<double>& c) {
    const auto to = [](double x) { return static_cast<T>(x); };
    return {to(c.grad_factor), to(c.l2),        to(c.decay),     to(c.weight1),     to(c.beta1),
            to(c.beta2),       to(c.weight2),   to(c.step_size), to(c.root_factor), to(c.eps),
            c.has_l2,          c.near_gradient, c.amsgrad,       c.small_eps};
  }
};

static_assert(TensorList<true>::kTensors > 0 && StepArguments<double, false>::kGroups > 0);
static_assert(sizeof(StepArguments<double, false>) <= kArgumentBytes);
static_assert(sizeof(StepArguments<double, true>) <= kArgumentBytes);

}  // namespace
}  // namespace pyext
