// Matrix products of integers, which cuBLAS has not: tiles in shared memory, gathered from tensors
// of any strides.
#pragma once

#include "einsum_loops.cuh"

namespace pyext {
namespace {

constexpr int kTile = 64;   // of M and N
constexpr int kDepth = 16;  // of K
constexpr int kSide = 16;   // a block of threads is square, and so are the products of a thread
constexpr int kEach = kTile / kSide;
static_assert(kSide * kSide == kThreads);

template <typename acc_t>
struct IntegerProduct {
  // Of the batch, M, N and K, one after another; the fastest of each come first. in[0]: a, in[1]:
  // b.
  LoopDim dims[kMaxDims];
  int batch_dims, m_dims, n_dims, k_dims;  // how many
  int64_t batches, m, n, k;
  Factor a, b;
  bool a_by_depth, b_by_depth;  // neighbours in memory are neighbours in K
  Result<acc_t> out;
  int64_t m_tiles, n_tiles;
  int64_t piece_depth;   // of K that one row of the grid sums
  int64_t piece_stride;  // between their sums, in the result
};

static_assert(sizeof(IntegerProduct<uint64_t>) <= kArgumentBytes);

template <typename acc_t>
struct Tiles {
  // One more column: threads that write along K would all meet in one bank.
  acc_t a[kDepth][kTile + 1], b[kDepth][kTile + 1];
  int64_t a_row[kTile], b_col[kTile], out_row[kTile], out_col[kTile];
  int64_t a_depth[kDepth], b_depth[kDepth];
};

// Gathers `depth` x `length` values; beyond them are zeros.
template <typename Element, typename acc_t = SumType<Element>>
__device__ void gather(acc_t (&tile)[kDepth][kTile + 1], const Factor& from, int64_t begin,
                       const int64_t (&along)[kTile], const int64_t (&deep)[kDepth], int64_t length,
                       int64_t depth, bool by_depth, int thread) {
#pragma unroll
  for (int i = 0; i < kTile * kDepth / kThreads; ++i) {
    const int number = i * kThreads + thread;
    const int k = by_depth ? number % kDepth : number / kTile;
    const int x = by_depth ? number / kDepth : number % kTile;
    const bool inside = k < depth && x < length;
    tile[k][x] = inside ? load_value<Element>(from, begin + along[x] + deep[k]) : acc_t(0);
  }
}

template <typename Element>
__global__ void __launch_bounds__(kThreads)
    integer_product_kernel(const __grid_constant__ IntegerProduct<SumType<Element>> p) {
  using acc_t = SumType<Element>;
  __shared__ Tiles<acc_t> tiles;
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / kSide, col = thread % kSide;
  const LoopDim* const m_dims = p.dims + p.batch_dims;
  const LoopDim* const n_dims = m_dims + p.m_dims;
  const LoopDim* const k_dims = n_dims + p.n_dims;

  const int64_t in_batch = blockIdx.x % (p.m_tiles * p.n_tiles);
  const int64_t m_first = in_batch / p.n_tiles * kTile, n_first = in_batch % p.n_tiles * kTile;
  Offsets<2> begin;
  begin.add(p.dims, p.batch_dims, p.batches, blockIdx.x / (p.m_tiles * p.n_tiles));
  if (thread < 2 * kTile) {
    const bool is_row = thread < kTile;
    const int x = thread % kTile;
    const int64_t index = (is_row ? m_first : n_first) + x;
    Offsets<2> at;
    if (is_row) {
      if (index < p.m) at.add(m_dims, p.m_dims, p.m, index);
      tiles.a_row[x] = at.in[0];
      tiles.out_row[x] = at.out;
    } else {
      if (index < p.n) at.add(n_dims, p.n_dims, p.n, index);
      tiles.b_col[x] = at.in[1];
      tiles.out_col[x] = at.out;
    }
  }

  acc_t sums[kEach][kEach] = {};
  const int64_t k_begin = blockIdx.y * p.piece_depth;
  const int64_t k_end = k_begin + p.piece_depth < p.k ? k_begin + p.piece_depth : p.k;
  for (int64_t k_first = k_begin; k_first < k_end; k_first += kDepth) {
    if (thread < kDepth) {
      Offsets<2> at;
      if (k_first + thread < k_end) at.add(k_dims, p.k_dims, p.k, k_first + thread);
      tiles.a_depth[thread] = at.in[0];
      tiles.b_depth[thread] = at.in[1];
    }
    __syncthreads();  // also: the tiles of the last round are used up
    const int64_t depth = k_end - k_first;
    gather<Element>(tiles.a, p.a, begin.in[0], tiles.a_row, tiles.a_depth, p.m - m_first, depth,
                    p.a_by_depth, thread);
    gather<Element>(tiles.b, p.b, begin.in[1], tiles.b_col, tiles.b_depth, p.n - n_first, depth,
                    p.b_by_depth, thread);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const acc_t a = tiles.a[k][row + i * kSide];
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          sums[i][j] = sums[i][j] + a * tiles.b[k][col + j * kSide];
        }
      }
    }
  }

  const int64_t piece = begin.out + blockIdx.y * p.piece_stride;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int m = row + i * kSide, n = col + j * kSide;
      if (m_first + m >= p.m || n_first + n >= p.n) continue;
      const acc_t sum[1] = {sums[i][j]};
      p.out.store(piece + tiles.out_row[m] + tiles.out_col[n], sum, 1);
    }
  }
}

}  // namespace
}  // namespace pyext
