// Batches of matrices on CUDA, entry by entry: a block of threads takes a square tile. Symmetric
// matrices are computed by the tiles that meet their upper triangle, and written from there on both
// sides of the diagonal.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "packed_triangle.h"

namespace pyext {
namespace {

constexpr int kTile = 32, kTileRows = 8;       // entries along a side, and rows of threads
constexpr int kShare = kTile / kTileRows;      // entries of a tile per thread
constexpr int64_t kMostGridRows = 65535;       // of a grid, in its second and third index
constexpr int64_t kScratchBytes = 64ll << 20;  // about the cache of a large GPU

// The entries of a batch of matrices (N, rows, columns), or of packed upper triangles
// (N, packed_size(rows)) of which i <= j is asked, where they lie in a tensor.
template <typename T>
struct Entries {
  T* data;
  int64_t sample, row, col;  // strides
  int64_t packed_rows = 0;   // 0: not packed

  explicit Entries(const at::Tensor& x, int64_t rows = 0) : sample(x.stride(0)), row(0) {
    if constexpr (std::is_const_v<T>) {
      data = static_cast<T*>(x.const_data_ptr());
    } else {
      data = static_cast<T*>(x.mutable_data_ptr());
    }
    if (x.dim() == 3) row = x.stride(1);
    if (x.dim() == 2) packed_rows = rows;
    col = x.stride(-1);
  }

  __device__ T& operator()(int64_t n, int64_t i, int64_t j) const {
    if (packed_rows == 0) return data[n * sample + i * row + j * col];
    return data[n * sample + (packed_row(i, packed_rows) + j - i) * col];
  }
};

struct Tiles {
  int64_t rows, cols;
  bool upper = false;  // entries (i, j) of a square matrix with i <= j alone

  dim3 grid(int64_t matrices) const {
    const int64_t down = (rows + kTile - 1) / kTile, across = (cols + kTile - 1) / kTile;
    const int64_t x = upper ? across + 1 : across;
    const int64_t y = upper ? (down + 1) / 2 : std::min(down, kMostGridRows);
    TORCH_INTERNAL_ASSERT(std::max(y, matrices) <= kMostGridRows);
    return dim3(static_cast<uint32_t>(x), static_cast<uint32_t>(y),
                static_cast<uint32_t>(matrices));
  }

  // Calls f(i, j) with the first entry of each tile of this block.
  template <typename F>
  __device__ void each_tile(const F& f) const {
    const int64_t x = blockIdx.x, y = blockIdx.y;
    if (upper) {
      // The first row of tiles and the last, which is one tile, have one tile more than there are
      // rows; and so have the second and the last but one.
      const int64_t last = int64_t{gridDim.x} - 2 - y;
      if (x <= last) return f(y * kTile, (y + x) * kTile);
      if (last > y) f(last * kTile, (x - 1) * kTile);
      return;
    }
    for (int64_t row = y * kTile; row < rows; row += int64_t{gridDim.y} * kTile) f(row, x * kTile);
  }

  // Calls f(k, i, j) with what this thread has of a tile: its kth entry is (i, j).
  template <typename F>
  __device__ void each_entry(int64_t row, int64_t col, const F& f) const {
    const int64_t j = col + threadIdx.x;
#pragma unroll
    for (int k = 0; k < kShare; ++k) {
      const int64_t i = row + k * kTileRows + threadIdx.y;
      if (i < rows && j < cols && !(upper && i > j)) f(k, i, j);
    }
  }

  Tiles whole() const { return {rows, cols}; }
};

// The sum over the threads of a block, for the first of them; all must call.
template <typename T>
__device__ T block_sum(T sum) {
  __shared__ T warps[kTileRows];
  for (int d = kTile / 2; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (threadIdx.x == 0) warps[threadIdx.y] = sum;
  __syncthreads();
  T total(0);
  for (const T part : warps) total += part;
  return total;
}

template <typename T, typename Value, typename Store>
__global__ void __launch_bounds__(kTile* kTileRows)
    transform_kernel(const Tiles tiles, const Value value, const Store store) {
  const int64_t n = blockIdx.z;
  tiles.each_tile([&](int64_t row, int64_t col) {
    T values[kShare] = {};  // all loads before the first store
    tiles.each_entry(row, col, [&](int k, int64_t i, int64_t j) { values[k] = value(n, i, j); });
    tiles.each_entry(row, col, [&](int k, int64_t i, int64_t j) { store(n, i, j, values[k]); });
  });
}

template <typename T, typename Term>
__global__ void __launch_bounds__(kTile* kTileRows)
    sum_kernel(const Tiles tiles, const Term term, T* parts) {
  const int64_t n = blockIdx.z;
  T sum(0);
  tiles.each_tile([&](int64_t row, int64_t col) {
    tiles.each_entry(row, col, [&](int, int64_t i, int64_t j) { sum += term(n, i, j); });
  });
  sum = block_sum(sum);
  if (threadIdx.x + threadIdx.y > 0) return;
  parts[(n * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

template <typename T, typename Store>
__global__ void __launch_bounds__(kTile* kTileRows)
    total_kernel(const T* parts, int64_t count, const Store store) {
  const int64_t n = blockIdx.x;
  T sum(0);
  for (int64_t p = threadIdx.y * kTile + threadIdx.x; p < count; p += kTile * kTileRows) {
    sum += parts[n * count + p];
  }
  sum = block_sum(sum);
  if (threadIdx.x + threadIdx.y == 0) store(n, sum);
}

template <typename T, bool kPairs, typename Raw, typename Value, typename Store>
__global__ void __launch_bounds__(kTile* kTileRows)
    mirror_kernel(const Tiles upper, const Tiles whole, const Raw raw, const Value value,
                  const Store store) {
  __shared__ T shared[kTile][kTile + 1];  // the entries of a column lie in different banks
  const int64_t n = blockIdx.z;
  upper.each_tile([&](int64_t row, int64_t col) {  // one, or none
    T values[kShare] = {};
    upper.each_entry(row, col, [&](int k, int64_t i, int64_t j) { values[k] = raw(n, i, j); });
    if constexpr (kPairs) {
      whole.each_entry(col, row, [&](int, int64_t i, int64_t j) {
        if (i >= j) shared[i - col][j - row] = raw(n, i, j);
      });
      __syncthreads();
      upper.each_entry(row, col,
                       [&](int k, int64_t i, int64_t j) { values[k] += shared[j - col][i - row]; });
      __syncthreads();
    }
    upper.each_entry(row, col, [&](int k, int64_t i, int64_t j) {
      shared[i - row][j - col] = values[k] = value(n, i, j, values[k]);
    });
    __syncthreads();
    upper.each_entry(row, col, [&](int k, int64_t i, int64_t j) { store(n, i, j, values[k]); });
    whole.each_entry(col, row, [&](int, int64_t i, int64_t j) {
      if (i > j) store(n, i, j, shared[j - row][i - col]);
    });
  });
}

// Calls store(n, i, j, value(n, i, j)) for all entries.
template <typename T, typename Value, typename Store>
void transform(int64_t matrices, const Tiles& tiles, const Value& value, const Store& store) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  transform_kernel<T>
      <<<tiles.grid(matrices), dim3(kTile, kTileRows), 0, stream>>>(tiles, value, store);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Calls store(n, sum over i and j of term(n, i, j)), in an order that the sizes alone decide.
template <typename T, typename Term, typename Store>
void sum_entries(int64_t matrices, const Tiles& tiles, const Term& term, const Store& store) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const dim3 grid = tiles.grid(matrices), threads(kTile, kTileRows);
  const int64_t count = int64_t{grid.x} * grid.y;
  const auto parts = at::empty(
      {matrices, count}, at::TensorOptions(at::kCUDA).dtype(c10::CppTypeToScalarType<T>::value));
  sum_kernel<T><<<grid, threads, 0, stream>>>(tiles, term, parts.template mutable_data_ptr<T>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  total_kernel<T><<<grid.z, threads, 0, stream>>>(parts.template const_data_ptr<T>(), count, store);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Symmetric matrices. v = value(n, i, j, x) for i <= j, where x is raw(n, i, j), or, with kPairs,
// raw(n, i, j) + raw(n, j, i); then store(n, i, j, v) and store(n, j, i, v). `raw` may read the
// upper triangle of what is written.
template <typename T, bool kPairs, typename Raw, typename Value, typename Store>
void mirror(int64_t matrices, int64_t rows, const Raw& raw, const Value& value,
            const Store& store) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const Tiles upper{rows, rows, true}, whole{rows, rows};
  mirror_kernel<T, kPairs><<<upper.grid(matrices), dim3(kTile, kTileRows), 0, stream>>>(
      upper, whole, raw, value, store);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace pyext
