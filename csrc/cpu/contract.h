// A contraction of two strided tensors, or of three of which two are multiplied by each other as
// they are packed or as they are finished, on the tiled core: packs bricks of their index groups,
// and hands over finished tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>

#include "contraction.h"
#include "cpu/bricks.h"
#include "cpu/factors.h"
#include "cpu/matrices.h"
#include "cpu/pair_product.h"
#include "cpu/row_weights.h"
#include "cpu/scaled_result.h"
#include "cpu/tiles.h"

namespace pyext {
namespace {

template <typename acc_t>
class Contraction {
 public:
  Contraction(const SumOfProducts& problem, bool is_complex)
      : result_(problem, is_complex ? 2 : 1),
        parts_(is_complex ? 2 : 1),
        symmetric_(problem.symmetric),
        weighs_rows_(problem.weighs_rows) {
    if (problem.weighs_rows) {
      weights_tensor_ = problem.in[2];
      x_ = matrices_to_weigh(problem, weights_batch_);
    } else if (problem.factors() == 3) {
      x_ = matrices_of_three(problem);
    } else {
      Matrices forward = matrices_of(problem, false), turned = matrices_of(problem, true);
      x_ = cycles<acc_t>(turned) < cycles<acc_t>(forward) ? std::move(turned) : std::move(forward);
    }
    order_and_cut();
  }

  void run() {
    const TileGrid grid = this->grid();
    if (x_.pair) pair_.emplace(*x_.pair, x_.batch, x_.k, x_.n);
    if (weighs_rows_) {
      weights_.emplace(weights_tensor_, weights_batch_, x_.m, x_.n, x_.batches * x_.n.bricks(),
                       padded_row<acc_t>(grid.cols));
    }
    multiply_tiles<acc_t>(grid, Left{*this}, Right{*this}, Finished{*this},
                          [this](int64_t m, int64_t n) { return symmetric_ && m > n ? -1 : 0; });
  }

  // In how many pieces the sum is better formed: so that there is work for many threads, and so
  // that the blocks that several tiles share stay in cache. The sums of pieces take room of their
  // own.
  int64_t pieces() const {
    if (weighs_rows_) return 1;
    const int64_t tiles = x_.batches * wide_bricks_ * x_.m.bricks();
    const int64_t depth = x_.k.size(), results = x_.batches * x_.m.size() * x_.n.size();
    const int64_t bytes = x_.m.size() * depth * static_cast<int64_t>(sizeof(acc_t)) * parts_;
    const bool shared = wide_bricks_ > 1 && !Left{*this}.in_place();
    const int64_t wanted = std::max(shared ? bytes / kSharedBytes : 1, 32 / tiles);
    const int64_t worthwhile = std::min(depth / 1024, x_.m.size() * depth / (4 * results));
    return std::min(wanted, worthwhile);
  }

 private:
  void order_and_cut() {
    constexpr int64_t kDepth = 1024 / sizeof(acc_t);
    constexpr int64_t kBytes = 384 << 10;
    IndexGroup &m = x_.m, &n = x_.n, &k = x_.k;
    m.sort_by(&GroupDim::y);
    n.sort_by(&GroupDim::y);
    k.sort_by(&GroupDim::x);
    const int b_run = n.contiguous(&GroupDim::x), out_run = n.contiguous(&GroupDim::y);
    // One side of a tile of n is transposed when the factor and the result are contiguous in
    // different indices: the smaller one.
    if (b_run >= 0 && (out_run < 0 || m.size() < k.size()))
      n.make_fastest(b_run);
    else if (out_run >= 0)
      n.make_fastest(out_run);
    if (const int a_run = k.contiguous(&GroupDim::x); a_run >= 0) k.make_fastest(a_run);
    const bool two_runs = b_run >= 0 && out_run >= 0 && b_run != out_run;
    const int64_t values = kBytes / sizeof(acc_t);
    // Tiles that span a run of both tensors are wide; where many rows share them that is not worth
    // the depth it costs.
    const bool wide = two_runs && m.size() < 512;
    const int64_t wanted = std::min<int64_t>(n.size(), wide ? 1024 : 256);
    const int64_t whole = k.size() * parts_;
    // A product that is formed for few rows is used at once, so it stays in the first cache.
    const bool thin = x_.pair && m.size() <= 2 * kMicroRows;
    const int64_t deep =
        thin ? kDepth / 2 : std::clamp<int64_t>(values / std::max<int64_t>(wanted, 1), 64, kDepth);
    k.cut(whole <= deep * 3 / 2 || weighs_rows_ ? k.size() : deep / parts_);
    if (!symmetric_) {
      m.cut(64);
      cut_to_runs();
    }
    const int64_t depth = std::max<int64_t>(1, k.brick_size() * parts_);
    if (symmetric_) {
      n.cut(64);
      wide_bricks_ = n.bricks();
      // The same bricks for both, so that a tile and its mirror image are tiles.
      IndexGroup rows = n;
      for (auto& dim : rows.dims) dim.y = mirrored(dim);
      m = rows;
    } else {
      // Enough tiles for all threads, which do not change what is added to what.
      const int64_t tasks = x_.batches * ((m.size() + 255) / 256);
      const int64_t share = n.size() * tasks / (2 * at::get_num_threads());
      const int64_t most = thin ? 48 : std::clamp<int64_t>(values / depth, 64, 2048);
      n.cut(most, wide || !two_runs ? 64 : 16, 16);
      wide_bricks_ = n.bricks();
      if (share < most && !thin)
        n.cut(std::max<int64_t>(128, share), wide || !two_runs ? 64 : 16, 16);
    }
  }

  // Bricks of K that are long enough within one run need no copy of the first factor.
  void cut_to_runs() {
    const IndexGroup longer = x_.k;
    if (weighs_rows_ || x_.k.count() < 2 || Left{*this}.in_place()) return;
    x_.k.cut(x_.k.dims.back().size);
    if (x_.k.brick_size() < 64 || !Left{*this}.in_place()) x_.k = longer;
  }

  bool is_real(const ProductTensor& x) const {
    return parts_ == 1 && x.dtype == c10::CppTypeToScalarType<acc_t>::value;
  }
  // Whether rows so far apart fall into few sets of a cache.
  static bool aliases(int64_t stride, int64_t bytes) {
    return stride * static_cast<int64_t>(sizeof(acc_t)) % bytes == 0;
  }

  // The stride in the result of the index of M that mirrors this index of N.
  int64_t mirrored(const GroupDim& dim) const {
    for (const auto& other : x_.m.dims) {
      if (other.x == dim.x && other.size == dim.size) return other.y;
    }
    TORCH_INTERNAL_ASSERT(false);
  }

  TileGrid grid() const {
    constexpr int64_t kKeptBytes = 768 << 10;
    TileGrid grid;
    grid.batches = x_.batches;
    grid.m_tiles = x_.m.bricks();
    grid.n_tiles = x_.n.bricks();
    grid.k_tiles = x_.k.bricks();
    grid.rows = x_.m.brick_size() * parts_;
    grid.cols = x_.n.brick_size();
    grid.depth = x_.k.brick_size() * parts_;
    // As many tiles of m share a block of b as leaves a few tasks to every thread; all rows of a
    // group of fewer than 256 would be too few for the packing of b.
    const int64_t others = std::max<int64_t>(1, grid.batches * grid.n_tiles);
    const int64_t groups = std::max<int64_t>(1, 4 * at::get_num_threads() / others);
    const int64_t least = std::max<int64_t>(1, 256 / std::max<int64_t>(grid.rows, 1));
    grid.m_group = std::max(least, (grid.m_tiles + groups - 1) / groups);
    // BLAS, with which a product of two is compared, has chains that are longer yet.
    grid.longest_chain = x_.pair ? 48 : 64;
    grid.in_place = Finished{*this}.in_place();
    if (weighs_rows_) grid.m_group = grid.m_tiles;  // their rows are added up in order
    if (grid.k_tiles > 1 && !grid.in_place) {  // their tiles are kept until the sum is complete
      const int64_t tile = grid.rows * grid.cols * static_cast<int64_t>(sizeof(acc_t));
      grid.m_group = std::clamp<int64_t>(kKeptBytes / std::max<int64_t>(tile, 1), 1, grid.m_group);
    }
    return grid;
  }

  // Complex numbers become real matrices twice as large: [re, -im; im, re] times [re; im].
  struct Left {
    const Contraction& owner;

    bool in_place() const {
      const auto& x = owner.x_;
      const int64_t row = x.m.step(&GroupDim::x), col = x.k.step(&GroupDim::x);
      if (!owner.is_real(x.a) || row < 0 || col < 0) return false;
      if (col <= 1) return true;
      return row <= 1 && !aliases(col, 4096) && x.template uses_a_as_it_lies<acc_t>();
    }

    Block<acc_t> shape_of(int64_t m, int64_t k, const acc_t* data, int64_t row_stride) const {
      return {data, owner.x_.m.at(m).size * owner.parts_, owner.x_.k.at(k).size * owner.parts_,
              row_stride, 1};
    }

    Block<acc_t> block(int64_t batch, int64_t m_tile, int64_t k_tile, acc_t* scratch,
                       int64_t row_stride) const {
      const auto& x = owner.x_;
      const Brick m = x.m.at(m_tile), k = x.k.at(k_tile);
      const int64_t offset = x.offsets(batch)[0] + m.x + k.x;
      if (in_place()) {
        return {static_cast<const acc_t*>(x.a.data) + offset, m.size, k.size,
                x.m.step(&GroupDim::x), x.k.step(&GroupDim::x)};
      }
      const int parts = owner.parts_;
      for (int r = 0; r < parts; ++r) {
        for (int s = 0; s < parts; ++s) {
          MoveDims move;
          add_brick(move, x.m, m, &GroupDim::x, parts, row_stride, true);
          add_brick(move, x.k, k, &GroupDim::x, parts, 1, true);
          acc_t* to = scratch + r * m.size * row_stride + s * k.size;
          gather(to, x.a, offset * parts + (r ^ s), move);
          if (r < s) {
            for (int64_t i = 0; i < m.size; ++i) {
              for (int64_t j = 0; j < k.size; ++j) to[i * row_stride + j] = -to[i * row_stride + j];
            }
          }
        }
      }
      return {scratch, m.size * parts, k.size * parts, row_stride, 1};
    }
  };

  struct Right {
    const Contraction& owner;

    // Rows of whole vectors, all of them in one tile.
    bool in_place() const {
      const auto& x = owner.x_;
      const int64_t row = x.k.step(&GroupDim::y), col = x.n.step(&GroupDim::x);
      constexpr int64_t kWidth = at::vec::Vectorized<acc_t>::size();
      return !x.pair && owner.is_real(x.b) && row >= 0 && col == 1 &&
             x.n.size() == x.n.brick_size() && x.n.size() % kWidth == 0 && !aliases(row, 1024) &&
             x.template uses_b_as_it_lies<acc_t>();
    }

    int64_t matrix(int64_t batch) const {
      return owner.x_.pair ? batch : owner.x_.offsets(batch)[1];
    }

    Block<acc_t> block(int64_t batch, int64_t k_tile, int64_t n_tile, acc_t* scratch,
                       int64_t row_stride) const {
      const auto& x = owner.x_;
      const Brick n = x.n.at(n_tile), k = x.k.at(k_tile);
      if (in_place()) {
        const acc_t* data = static_cast<const acc_t*>(x.b.data) + x.offsets(batch)[1] + n.x + k.y;
        return {data, k.size, n.size, x.k.step(&GroupDim::y), 1};
      }
      const int parts = owner.parts_;
      if (x.pair) {
        owner.pair_->block(batch, k, n, scratch, row_stride);
      } else {
        MoveDims move;
        if (parts > 1) move.add(2, 1, k.size * row_stride);
        add_brick(move, x.k, k, &GroupDim::y, parts, row_stride, true);
        add_brick(move, x.n, n, &GroupDim::x, parts, 1, true);
        gather(scratch, x.b, (x.offsets(batch)[1] + n.x + k.y) * parts, move);
      }
      constexpr int64_t kWidth = at::vec::Vectorized<acc_t>::size();
      const int64_t whole = (n.size + kWidth - 1) / kWidth * kWidth;
      if (whole > n.size) {
        for (int64_t i = 0; i < k.size * parts; ++i) {
          std::fill(scratch + i * row_stride + n.size, scratch + i * row_stride + whole, acc_t(0));
        }
      }
      return {scratch, k.size * parts, n.size, row_stride, 1};
    }
  };

  struct Finished {
    const Contraction& owner;

    // Whether tiles are summed where the result is: their rows are contiguous there.
    bool in_place() const {
      const auto& x = owner.x_;
      const int64_t row = x.m.step(&GroupDim::y), col = x.n.step(&GroupDim::y);
      return owner.result_.memory() != nullptr && !owner.weighs_rows_ && !owner.symmetric_ &&
             row >= 0 && (col == 0 || col == 1);
    }

    std::pair<acc_t*, int64_t> place(int64_t batch, int64_t m_tile, int64_t n_tile) const {
      const auto& x = owner.x_;
      const int64_t offset = x.offsets(batch)[2] + x.m.at(m_tile).y + x.n.at(n_tile).y;
      return {owner.result_.memory() + offset, x.m.step(&GroupDim::y)};
    }

    void operator()(int64_t batch, int64_t m_tile, int64_t n_tile, acc_t* tile,
                    int64_t row_stride) const {
      const auto& x = owner.x_;
      const Brick m = x.m.at(m_tile), n = x.n.at(n_tile);
      const int64_t begin = x.offsets(batch)[2];
      const ScaledResult<acc_t>& result = owner.result_;
      if (owner.weighs_rows_) {
        acc_t* sums =
            owner.weights_->add(batch * x.n.bricks() + n_tile, batch, m, n, tile, m_tile == 0);
        if (m_tile + 1 < x.m.bricks()) return;
        result.scale(sums, 1, n.size, row_stride);
        return result.put(begin + n.y, {}, {}, x.n, n, sums, row_stride);
      }
      result.scale(tile, m.size, n.size, row_stride);
      result.put(begin + m.y + n.y, x.m, m, x.n, n, tile, row_stride);
      if (owner.symmetric_ && m_tile != n_tile) {  // once more, with rows for columns
        const int64_t mirrored = x.n.at(m_tile).y + x.m.at(n_tile).y;
        result.put(begin + mirrored, x.n, m, x.m, n, tile, row_stride);
      }
    }
  };

  Matrices x_;
  ScaledResult<acc_t> result_;
  ProductTensor weights_tensor_{};  // of rows
  c10::SmallVector<ProductDim, 4> weights_batch_;
  // While it runs.
  std::optional<PairProduct<acc_t>> pair_;
  std::optional<RowWeights<acc_t>> weights_;
  int64_t wide_bricks_ = 1;  // of n, on one thread
  int parts_;
  bool symmetric_, weighs_rows_;
};

}  // namespace
}  // namespace pyext
