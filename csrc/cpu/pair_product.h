// The elementwise product of two factors as one operand of a matrix product, formed block by block
// while it is packed: nothing of its size is ever in memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "cpu/bricks.h"
#include "cpu/factors.h"
#include "cpu/lanes.h"
#include "cpu/tiles.h"

namespace pyext {
namespace {

// Both factors are first laid out alike: batch, K, N, the fastest index of N contiguous. They are
// small beside their product.
template <typename acc_t>
class PairProduct {
 public:
  // Each index has its stride in factor f in GroupDim::pair[f], or ProductDim::in[1 + f].
  PairProduct(const std::array<ProductTensor, 2>& factors,
              const c10::SmallVectorImpl<ProductDim>& batch, const IndexGroup& k,
              const IndexGroup& n)
      : batch_(batch.begin(), batch.end()), k_(k), n_(n) {
    for (int f = 0; f < 2; ++f) lay_out(f, factors[f]);
  }

  void block(int64_t batch, const Brick& k, const Brick& n, acc_t* to, int64_t row_stride) const {
    const int run = n_.count() - 1, inner = k_.count() - 1;
    // Factors that vary along the run come first.
    const auto& along = n_.dims[run].pair;
    const std::array<int, 2> order = {along[0] == 0, along[0] != 0};
    constexpr std::array multiply = {multiply_rows<acc_t, 0>, multiply_rows<acc_t, 1>,
                                     multiply_rows<acc_t, 2>};
    const int64_t vectors = along[0] + along[1];
    std::array<const acc_t*, 2> origin;
    for (int f = 0; f < 2; ++f) {
      origin[f] = packed_[f].get() + batch_offset(f, batch) + first(f, k_, k) + first(f, n_, n);
    }
    const int64_t rows = k.extent[inner], length = n.extent[run];
    Strides row_step{};
    for (int f = 0; f < 2; ++f) row_step[f] = k_.dims[inner].pair[order[f]];
    for_each(k_, k, inner, [&](int64_t row, int64_t p_row, int64_t q_row) {
      for_each(n_, n, run, [&](int64_t col, int64_t p_col, int64_t q_col) {
        const std::array<const acc_t*, 2> at = {origin[0] + p_row + p_col,
                                                origin[1] + q_row + q_col};
        const Pointers<acc_t> x = {at[order[0]], at[order[1]]};
        multiply[vectors](to + row * rows * row_stride + col * length, row_stride, rows, length, x,
                          2, row_step);
      });
    });
  }

  void lay_out(int f, const ProductTensor& factor) {
    int64_t step = 1;
    c10::SmallVector<MoveDim, 12> moves;  // of the indices that the factor has, the slowest first
    const auto place = [&](int64_t size, int64_t& stride) {
      if (stride == 0) return;
      moves.insert(moves.begin(), {size, stride, step});
      stride = step;
      step *= size;
    };
    for (int i = n_.count() - 1; i >= 0; --i) place(n_.dims[i].size, n_.dims[i].pair[f]);
    step = padded_row<acc_t>(step);
    for (int i = k_.count() - 1; i >= 0; --i) place(k_.dims[i].size, k_.dims[i].pair[f]);
    for (int i = static_cast<int>(batch_.size()) - 1; i >= 0; --i) {
      place(batch_[i].size, batch_[i].in[1 + f]);
    }
    packed_[f] = make_scratch<acc_t>(step);
    const MoveDim outer = moves.empty() ? MoveDim{1, 0, 0} : moves.front();
    share_tasks((outer.size + kRows - 1) / kRows, [&](Tasks& take) {
      for (int64_t i = take(); i >= 0; i = take()) {
        MoveDims dims;
        dims.add(std::min(kRows, outer.size - i * kRows), outer.from, outer.to);
        for (size_t d = 1; d < moves.size(); ++d)
          dims.add(moves[d].size, moves[d].from, moves[d].to);
        gather(packed_[f].get() + i * kRows * outer.to, factor, i * kRows * outer.from, dims);
      }
    });
  }

  int64_t batch_offset(int f, int64_t number) const {
    int64_t offset = 0;
    for (int i = static_cast<int>(batch_.size()) - 1; i >= 0; --i) {
      offset += number % batch_[i].size * batch_[i].in[1 + f];
      number /= batch_[i].size;
    }
    return offset;
  }

  static int64_t first(int f, const IndexGroup& group, const Brick& brick) {
    int64_t offset = 0;
    for (int i = 0; i < group.count(); ++i) offset += brick.begin[i] * group.dims[i].pair[f];
    return offset;
  }

  // Calls f(position, offset in p, offset in q) for all values of the first `count` indices.
  template <typename F>
  static void for_each(const IndexGroup& group, const Brick& brick, int count, const F& f,
                       int depth = 0, int64_t position = 0, int64_t p = 0, int64_t q = 0) {
    if (depth == count) return f(position, p, q);
    const GroupDim& dim = group.dims[depth];
    for (int64_t i = 0; i < brick.extent[depth]; ++i) {
      for_each(group, brick, count, f, depth + 1, position * brick.extent[depth] + i,
               p + i * dim.pair[0], q + i * dim.pair[1]);
    }
  }

  static constexpr int64_t kRows = 64;
  c10::SmallVector<ProductDim, 4> batch_;
  IndexGroup k_, n_;
  std::array<Scratch<acc_t>, 2> packed_;
};

}  // namespace
}  // namespace pyext
