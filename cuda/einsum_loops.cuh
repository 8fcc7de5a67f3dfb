// A fused sum of products on CUDA: how its indices are laid over threads, and the kernel.
//
// The lane is the index that neighbouring threads walk along. Where it is an index of the result
// ("columns"), a thread sums what belongs to a unit of kWidth neighbouring results; where it is
// summed over ("rows"), a unit is kWidth neighbouring terms. `group` threads share a result and
// join their sums at the end, in an order that depends on the sizes alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <ATen/cuda/detail/IntegerDivider.cuh>

#include "contraction.h"
#include "einsum_launch.cuh"
#include "einsum_values.cuh"

namespace pyext {
namespace {

constexpr int kMaxDims = 64;  // an index has 2 values or more, and their number has 63 bits
constexpr int kWarp = 32;
constexpr size_t kArgumentBytes = 4096;  // of a kernel, where drivers are of CUDA 12.0

struct LoopDim {
  at::cuda::detail::IntDivider<uint32_t> divider;  // where indices are below 2^31
  int64_t size;
  int64_t out;
  int64_t in[kMaxFactors];

  LoopDim() = default;
  explicit LoopDim(const ProductDim& dim)
      : divider(static_cast<uint32_t>(dim.size >= 1 && dim.size <= INT32_MAX ? dim.size : 1)),
        size(dim.size),
        out(dim.out) {
    for (int f = 0; f < kMaxFactors; ++f) in[f] = dim.in[f];
  }
};

template <int kFactors>
struct Offsets {
  int64_t out = 0;
  int64_t in[kFactors] = {};

  // Moves to the `index`th of the `total` values of some dims, the first of which varies fastest.
  // Returns the index in that one.
  __device__ int64_t add(const LoopDim* dims, int count, int64_t total, int64_t index) {
    const bool narrow = total <= INT32_MAX;
    int64_t first = 0;
    for (int d = 0; d < count; ++d) {
      const LoopDim& dim = dims[d];
      int64_t digit = index;
      if (d + 1 < count) {
        if (narrow) {
          const auto parts = dim.divider.divmod(static_cast<uint32_t>(index));
          digit = parts.mod;
          index = parts.div;
        } else {
          digit = index % dim.size;
          index /= dim.size;
        }
      }
      if (d == 0) first = digit;
      out += digit * dim.out;
#pragma unroll
      for (int f = 0; f < kFactors; ++f) in[f] += digit * dim.in[f];
    }
    return first;
  }
};

template <typename acc_t>
Result<acc_t> result_of(const SumOfProducts& problem) {
  const auto number = [](const c10::Scalar& scalar) {
    if constexpr (std::is_unsigned_v<acc_t>) {
      return static_cast<acc_t>(scalar.to<std::make_signed_t<acc_t>>());
    } else {
      return scalar.to<acc_t>();
    }
  };
  return {problem.out.data,     problem.out.dtype,       number(problem.alpha),
          number(problem.beta), !problem.alpha.equal(1), !problem.beta.equal(0)};
}

// Results, terms and the first index of each kind are counted in units.
template <typename acc_t>
struct Loops {
  LoopDim dims[kMaxDims];  // those of the result, then those summed over; the fastest come first
  int kept, summed;        // how many
  int64_t results, terms;
  Factor in[kMaxFactors];
  Result<acc_t> out;
  bool columns;
  bool any;              // the sum is of bool: whether there is a term that is not 0
  int group_log2;        // of the threads that share a result
  int64_t piece_terms;   // terms that one row of the grid sums
  int64_t piece_stride;  // between their sums, in the result

  struct Place {
    int64_t result;
    int rank;  // in the group
  };
  __device__ int group() const { return 1 << group_log2; }
  __device__ int slots() const { return kThreads >> group_log2; }
  __device__ Place place_of(int64_t block, int thread) const {
    const int slot = columns ? thread & (slots() - 1) : thread >> group_log2;
    const int rank = columns ? thread / slots() : thread & (group() - 1);
    return {block * slots() + slot, rank};
  }
};

static_assert(sizeof(Loops<c10::complex<double>>) <= kArgumentBytes);

template <typename Element, int kWidth, int kFactors, typename acc_t = SumType<Element>>
__device__ void load_product(acc_t (&product)[kWidth], const Loops<acc_t>& p,
                             const int64_t (&offsets)[kFactors]) {
  load_unit<Element, kWidth>(product, p.in[0], offsets[0]);
#pragma unroll
  for (int f = 1; f < kFactors; ++f) {
    acc_t factor[kWidth];
    load_unit<Element, kWidth>(factor, p.in[f], offsets[f]);
#pragma unroll
    for (int w = 0; w < kWidth; ++w) product[w] = product[w] * factor[w];
  }
}

// The share of one thread in the sum of a result that begins at `start`: every group()th term.
template <typename Element, int kWidth, int kFactors, typename acc_t = SumType<Element>>
__device__ void sum_terms(acc_t (&sum)[kWidth], const Loops<acc_t>& p,
                          const Offsets<kFactors>& start, int rank, int64_t piece) {
  constexpr int kChains = kWidth > 4 ? 2 : 4;  // loads in flight, and shorter sums round less
  const LoopDim* const dims = p.dims + p.kept;
  const int64_t round_up = p.group() - 1;
  int64_t term = piece * p.piece_terms, end = term + p.piece_terms;
  if (end > p.terms) end = p.terms;
  term += rank;

  int64_t step[kFactors];
#pragma unroll
  for (int f = 0; f < kFactors; ++f) step[f] = dims[0].in[f] << p.group_log2;
  acc_t sums[kChains][kWidth] = {};
  // Runs along the fastest index need no division.
  while (term < end) {
    Offsets<kFactors> at = start;
    const int64_t first = at.add(dims, p.summed, p.terms, term);
    const int64_t in_run = (dims[0].size - first + round_up) >> p.group_log2;
    const int64_t in_piece = (end - term + round_up) >> p.group_log2;
    const int64_t count = in_run < in_piece ? in_run : in_piece;
    term += count << p.group_log2;
    int64_t left = count;
    for (; left >= kChains; left -= kChains) {
      acc_t products[kChains][kWidth];
#pragma unroll
      for (int c = 0; c < kChains; ++c) {
        load_product<Element, kWidth, kFactors>(products[c], p, at.in);
#pragma unroll
        for (int f = 0; f < kFactors; ++f) at.in[f] += step[f];
      }
#pragma unroll
      for (int c = 0; c < kChains; ++c) {
#pragma unroll
        for (int w = 0; w < kWidth; ++w) sums[c][w] = sums[c][w] + products[c][w];
      }
    }
    for (; left > 0; --left) {
      acc_t product[kWidth];
      load_product<Element, kWidth, kFactors>(product, p, at.in);
#pragma unroll
      for (int w = 0; w < kWidth; ++w) sums[0][w] = sums[0][w] + product[w];
#pragma unroll
      for (int f = 0; f < kFactors; ++f) at.in[f] += step[f];
    }
  }
#pragma unroll
  for (int c = kChains / 2; c > 0; c /= 2) {
#pragma unroll
    for (int i = 0; i < c; ++i) {
#pragma unroll
      for (int w = 0; w < kWidth; ++w) sums[i][w] = sums[i][w] + sums[i + c][w];
    }
  }
#pragma unroll
  for (int w = 0; w < kWidth; ++w) {
    sum[w] = sums[0][w];
    if constexpr (std::is_same_v<acc_t, uint32_t>) {
      if (p.any) sum[w] = sum[w] != 0;  // 2^32 of them would add up to 0
    }
  }
}

template <typename T>
__device__ T shuffled(const T& value, int distance) {
  constexpr int kWords = sizeof(T) / sizeof(uint32_t);
  uint32_t words[kWords];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __shfl_xor_sync(0xffffffffu, words[i], distance);
  T result;
  memcpy(&result, words, sizeof(T));
  return result;
}

// Adds up the sums of a group; all of a block must call. The thread of rank 0 has the total: one
// number in sum[0] for rows.
template <int kWidth, typename acc_t>
__device__ void join(acc_t (&sum)[kWidth], const Loops<acc_t>& p, int thread, int rank) {
  alignas(16) __shared__ unsigned char memory[kThreads * kWidth * sizeof(acc_t)];
  auto* const shared = reinterpret_cast<acc_t*>(memory);
  if (p.columns) {
#pragma unroll
    for (int w = 0; w < kWidth; ++w) shared[w * kThreads + thread] = sum[w];
    for (int half = p.group() / 2; half > 0; half /= 2) {
      __syncthreads();
      if (rank >= half) continue;
#pragma unroll
      for (int w = 0; w < kWidth; ++w) {
        sum[w] = sum[w] + shared[w * kThreads + thread + half * p.slots()];
        shared[w * kThreads + thread] = sum[w];
      }
    }
    return;
  }
#pragma unroll
  for (int c = kWidth / 2; c > 0; c /= 2) {
#pragma unroll
    for (int w = 0; w < c; ++w) sum[w] = sum[w] + sum[w + c];
  }
  const int lanes = p.group() < kWarp ? p.group() : kWarp;
  for (int d = lanes / 2; d > 0; d /= 2) sum[0] = sum[0] + shuffled(sum[0], d);
  if (p.group() <= kWarp) return;
  const int warp = thread / kWarp;
  if (thread % kWarp == 0) shared[warp] = sum[0];
  __syncthreads();
  if (rank != 0) return;
  for (int w = 1; w < p.group() / kWarp; ++w) sum[0] = sum[0] + shared[warp + w];
}

template <typename Element, int kWidth, int kFactors>
__global__ void __launch_bounds__(kThreads)
    multiply_reduce_kernel(const __grid_constant__ Loops<SumType<Element>> p) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto place = p.place_of(blockIdx.x, thread);
  const bool inside = place.result < p.results;
  Offsets<kFactors> start;
  SumType<Element> sum[kWidth] = {};
  if (inside) {
    start.add(p.dims, p.kept, p.results, place.result);
    sum_terms<Element, kWidth, kFactors>(sum, p, start, place.rank, blockIdx.y);
  }
  if (p.group_log2 > 0 || !p.columns) join(sum, p, thread, place.rank);
  if (!inside || place.rank != 0) return;
  p.out.store(start.out + blockIdx.y * p.piece_stride, sum, p.columns ? kWidth : 1);
}

}  // namespace
}  // namespace pyext
