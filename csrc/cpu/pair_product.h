// The elementwise product of two factors as one operand of a matrix product, formed block by block
// while it is packed: nothing of its size is ever in memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "cpu/bricks.h"
#include "cpu/factors.h"
#include "cpu/tiles.h"

namespace pyext {
namespace {

// to[i] = p[i * p_step] * q[i * q_step], where a step is 0 or 1.
template <typename T>
void multiply_runs(T* to, const T* p, int64_t p_step, const T* q, int64_t q_step, int64_t count) {
  using Vec = at::vec::Vectorized<T>;
  if (p_step == 0) {
    std::swap(p, q);
    std::swap(p_step, q_step);
  }
  int64_t i = 0;
  if (q_step == 0) {
    const Vec factor(*q);
    if (p_step == 0) return std::fill(to, to + count, *p * *q);
    for (; i + Vec::size() <= count; i += Vec::size()) {
      (Vec::loadu(p + i) * factor).store(to + i);
    }
    if (i < count) (Vec::loadu(p + i, count - i) * factor).store(to + i, count - i);
    return;
  }
  for (; i + Vec::size() <= count; i += Vec::size()) {
    (Vec::loadu(p + i) * Vec::loadu(q + i)).store(to + i);
  }
  if (i < count) {
    (Vec::loadu(p + i, count - i) * Vec::loadu(q + i, count - i)).store(to + i, count - i);
  }
}

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
    std::array<const acc_t*, 2> origin;
    for (int f = 0; f < 2; ++f) {
      origin[f] = packed_[f].get() + batch_offset(f, batch) + first(f, k_, k) + first(f, n_, n);
    }
    const int run = n_.count() - 1;
    const int64_t length = n.extent[run];
    const int64_t p_step = n_.dims[run].pair[0], q_step = n_.dims[run].pair[1];
    for_each(k_, k, k_.count(), [&](int64_t row, int64_t p_row, int64_t q_row) {
      for_each(n_, n, run, [&](int64_t col, int64_t p_col, int64_t q_col) {
        multiply_runs(to + row * row_stride + col * length, origin[0] + p_row + p_col, p_step,
                      origin[1] + q_row + q_col, q_step, length);
      });
    });
  }

 private:
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
    share_tasks((outer.size + kRows - 1) / kRows, [&](const auto& take) {
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
