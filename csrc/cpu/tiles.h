// The tiled contraction core: products of matrices whose operands are formed tile by tile and whose
// result is handed over tile by tile, complete and still in cache.
//
// What the matrices are is left to three objects. `a` and `b` deliver blocks, packed from any
// strides or computed on the fly; `store` receives finished tiles and may scale, transform, reduce
// and scatter them. Each tile is summed over the whole of K by one thread, so results do not depend
// on the number of threads. After Goto and van de Geijn (2008) and, for packing from arbitrary
// strides, Springer and Bientinesi (arXiv 1607.00145) and Matthews (arXiv 1607.00291).
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <tuple>

#include "cpu/blocks.h"
#include "cpu/micro_kernel.h"

namespace pyext {
namespace {

// How the work is cut: how many tiles there are each way, and the largest extent of one.
struct TileGrid {
  int64_t batches = 1;
  int64_t m_tiles, n_tiles, k_tiles;
  int64_t rows, cols, depth;
  // Consecutive m tiles that share a packed block of b.
  int64_t m_group = 1;
  int64_t longest_chain = 32;  // sums of many short ones keep more digits
  bool in_place = false;       // tiles are summed where store.place(...) says
};

// A block of a matrix: in scratch, or where it was.
template <typename T>
struct Block {
  const T* data;
  int64_t rows, cols;
  int64_t row_stride, col_stride;
};

// A row length that is whole vectors and does not put every row into the same few cache sets.
template <typename T>
int64_t padded_row(int64_t length) {
  constexpr int64_t kWidth = at::vec::Vectorized<T>::size();
  length = (length + kWidth - 1) / kWidth * kWidth;
  return length * sizeof(T) % 1024 == 0 && length > 0 ? length + kWidth : length;
}

// Gives out the numbers below `count`, each once and in order, and then -1.
class Tasks {
 public:
  explicit Tasks(int64_t count) : count_(count) {}
  int64_t operator()() {
    const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    return task < count_ ? task : -1;
  }

 private:
  std::atomic<int64_t> next_{0};
  int64_t count_;
};

// Calls work(take) on every thread, all with the same Tasks. Who is early takes more, so neither
// uneven tasks nor a busy core holds up the others.
template <typename Work>
void share_tasks(int64_t count, const Work& work) {
  Tasks take(count);
  const int64_t threads = std::min<int64_t>(count, at::get_num_threads());
  if (threads <= 1 || at::in_parallel_region()) return work(take);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(take);
  });
}

// to = x or, where it adds, to += x.
template <typename T>
void put_rows(T* to, int64_t to_row, const T* x, int64_t x_row, int64_t rows, int64_t cols,
              bool adds) {
  using Vec = at::vec::Vectorized<T>;
  for (int64_t i = 0; i < rows; ++i, to += to_row, x += x_row) {
    int64_t j = 0;
    for (; j + Vec::size() <= cols; j += Vec::size()) {
      const Vec value = Vec::loadu(x + j);
      (adds ? Vec::loadu(to + j) + value : value).store(to + j);
    }
    for (; j < cols; ++j) to[j] = adds ? to[j] + x[j] : x[j];
  }
}

// Keeps the blocks of `a` that several tiles of n share, for a stretch of batches at a time.
constexpr int64_t kSharedBytes = int64_t{8} << 20;

// a.block(batch, m, k, scratch, row_stride) and b.block(batch, k, n, scratch, row_stride) return a
// Block, in the scratch or not; columns of b's are contiguous and padded to whole vectors. `a` says
// by a.in_place() that it never needs its scratch, `b` by b.matrix(batch) which of its matrices a
// batch takes.
// store(batch, m, n, tile, row_stride) takes a finished tile, which it may overwrite; or, for a
// grid in place, store.place(batch, m, n) says where its rows are, and how far apart.
// first_column(m, n) says from which of its columns on a tile is wanted, -1 that nobody wants it.
// It is a whole number of vectors; the columns before are left as they were in scratch.
template <typename T, typename A, typename B, typename Store, typename FirstColumn>
void multiply_tiles(const TileGrid& grid, const A& a, const B& b, const Store& store,
                    const FirstColumn& first_column) {
  const int64_t a_row = padded_row<T>(grid.depth), b_row = padded_row<T>(grid.cols);
  const int64_t a_size = grid.rows * a_row, b_size = grid.depth * b_row, c_size = grid.rows * b_row;
  const bool share = grid.n_tiles > 1 && !a.in_place();
  const int64_t a_tiles = grid.m_tiles * grid.k_tiles;
  const int64_t a_bytes = a_tiles * a_size * static_cast<int64_t>(sizeof(T));
  const int64_t stretch =
      share ? std::clamp<int64_t>(kSharedBytes / std::max<int64_t>(a_bytes, 1), 1, grid.batches)
            : grid.batches;
  const auto shared = make_scratch<T>(share ? stretch * a_tiles * a_size : 0);
  const int64_t most = std::clamp<int64_t>(grid.m_group, 1, std::max<int64_t>(grid.m_tiles, 1));
  const int64_t groups = (grid.m_tiles + most - 1) / most;
  const int64_t m_group = (grid.m_tiles + groups - 1) / std::max<int64_t>(groups, 1);

  for (int64_t first = 0; first < grid.batches; first += stretch) {
    const int64_t batches = std::min(stretch, grid.batches - first);
    const auto shared_block = [&](int64_t batch, int64_t m, int64_t k) {
      return shared.get() + (((batch - first) * grid.m_tiles + m) * grid.k_tiles + k) * a_size;
    };
    if (share) {
      share_tasks(batches * a_tiles, [&](Tasks& take) {
        for (int64_t i = take(); i >= 0; i = take()) {
          const int64_t batch = first + i / a_tiles, m = i % a_tiles / grid.k_tiles;
          const int64_t k = i % grid.k_tiles;
          a.block(batch, m, k, shared_block(batch, m, k), a_row);
        }
      });
    }
    share_tasks(batches * groups * grid.n_tiles, [&](Tasks& take) {
      const int64_t kept = grid.k_tiles > 1 && !grid.in_place ? m_group : 1;
      const auto a_scratch = make_scratch<T>(share || a.in_place() ? 0 : a_size);
      const auto b_scratch = make_scratch<T>(b_size);
      const auto tiles = make_scratch<T>(grid.in_place ? 0 : kept * c_size);
      constexpr int64_t kWidth = at::vec::Vectorized<T>::size();
      const auto apart = make_scratch<T>(grid.in_place ? grid.rows * kWidth : 0);
      Block<T> right{};
      std::tuple<int64_t, int64_t, int64_t> right_is{-1, -1, -1};  // matrix, k, n
      for (int64_t i = take(); i >= 0; i = take()) {
        const int64_t batch = first + i / (groups * grid.n_tiles);
        const int64_t group = i / grid.n_tiles % groups, n = i % grid.n_tiles;
        const int64_t m_begin = group * m_group, m_end = std::min(m_begin + m_group, grid.m_tiles);
        for (int64_t k = 0; k < grid.k_tiles; ++k) {
          const std::tuple wanted{b.matrix(batch), k, n};
          for (int64_t m = m_begin; m < m_end; ++m) {
            const int64_t from = first_column(m, n);
            if (from < 0) continue;
            if (right_is != wanted) right = b.block(batch, k, n, b_scratch.get(), b_row);
            right_is = wanted;
            T* scratch = share ? shared_block(batch, m, k) : a_scratch.get();
            const Block<T> left =
                share ? a.shape_of(m, k, scratch, a_row) : a.block(batch, m, k, scratch, a_row);
            T* tile = tiles.get() + (kept > 1 ? m - m_begin : 0) * c_size;
            int64_t tile_row = b_row;
            if constexpr (requires { store.place(batch, m, n); }) {
              if (grid.in_place) std::tie(tile, tile_row) = store.place(batch, m, n);
            }
            const int64_t cols = right.cols - from;
            const auto multiply = [&](int64_t first_col, int64_t count, T* to, int64_t to_row,
                                      bool adds) {
              multiply_block<T>(left.rows, count, left.cols,
                                {left.data, left.row_stride, left.col_stride,
                                 right.data + first_col, right.row_stride},
                                {to, to_row, adds}, grid.longest_chain);
            };
            // Where tiles are summed in place, a last vector would reach beyond the tile.
            const int64_t beyond = grid.in_place ? cols % kWidth : 0;
            const int64_t whole = cols - beyond;
            if (whole > 0) multiply(from, whole, tile + from, tile_row, k > 0);
            if (beyond > 0) {
              multiply(from + whole, beyond, apart.get(), kWidth, false);
              put_rows(tile + from + whole, tile_row, apart.get(), kWidth, left.rows, beyond,
                       k > 0);
            }
            if (k + 1 == grid.k_tiles && !grid.in_place) store(batch, m, n, tile, b_row);
          }
        }
      }
    });
  }
}

}  // namespace
}  // namespace pyext
