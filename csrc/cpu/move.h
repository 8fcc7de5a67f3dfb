// Moves a block between two layouts, converting as it goes: how tiles are gathered from any strides
// into cache and scattered from it. Runs are copied where both sides are contiguous in the same
// index, and transposed in registers where they are not.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/blocks.h"
#include "cpu/transpose.h"

namespace pyext {
namespace {

constexpr int kMaxMoveDims = 16;  // kMaxIndices of a contraction, and the parts of a complex number

// One index of the block: its values lie `from` and `to` elements apart.
struct MoveDim {
  int64_t size, from, to;
};

// The indices of a block, the slowest first.
class MoveDims {
 public:
  void add(int64_t size, int64_t from, int64_t to) {
    if (size != 1) dims_[count_++] = {size, from, to};
  }
  int count() const { return count_; }
  MoveDim& operator[](int i) { return dims_[i]; }
  const MoveDim& operator[](int i) const { return dims_[i]; }
  MoveDims reversed() const {
    MoveDims result;
    for (int i = 0; i < count_; ++i) result.add(dims_[i].size, dims_[i].to, dims_[i].from);
    return result;
  }
  MoveDim take(int i) {
    const MoveDim taken = dims_[i];
    std::copy(dims_ + i + 1, dims_ + count_, dims_ + i);
    --count_;
    return taken;
  }
  // Sorts by the stride of one side, and makes one index of two that lie alike on both.
  template <typename Stride>
  void sort_and_merge(Stride stride) {
    for (int i = 1; i < count_; ++i) {
      for (int j = i; j > 0 && stride(dims_[j - 1]) < stride(dims_[j]); --j) {
        std::swap(dims_[j - 1], dims_[j]);
      }
    }
    for (int i = count_ - 1; i > 0; --i) {
      MoveDim &outer = dims_[i - 1], &inner = dims_[i];
      if (outer.from == inner.size * inner.from && outer.to == inner.size * inner.to) {
        inner.size *= outer.size;
        take(i - 1);
      }
    }
  }

 private:
  MoveDim dims_[kMaxMoveDims];
  int count_ = 0;
};

// Calls f(from offset, to offset) for every combination of the indices dims[depth...].
template <typename F>
void for_each_offset(const MoveDims& dims, const F& f, int depth = 0, int64_t from = 0,
                     int64_t to = 0) {
  if (depth == dims.count()) return f(from, to);
  const MoveDim dim = dims[depth];
  if (depth + 1 == dims.count()) {
    for (int64_t i = 0; i < dim.size; ++i) f(from + i * dim.from, to + i * dim.to);
    return;
  }
  for (int64_t i = 0; i < dim.size; ++i) {
    for_each_offset(dims, f, depth + 1, from + i * dim.from, to + i * dim.to);
  }
}

template <typename to_t, typename from_t>
to_t converted(const from_t& x) {
  if constexpr (c10::is_complex<from_t>::value && !c10::is_complex<to_t>::value) {
    return static_cast<to_t>(x.real());
  } else {
    return static_cast<to_t>(x);
  }
}

template <typename to_t, typename from_t>
void copy_run(to_t* to, int64_t to_stride, const from_t* from, int64_t from_stride, int64_t count) {
  constexpr bool widens = std::is_same_v<to_t, float> && c10::is_reduced_floating_point_v<from_t>;
  constexpr bool narrows = std::is_same_v<from_t, float> && c10::is_reduced_floating_point_v<to_t>;
  if (to_stride == 1 && from_stride == 1) {
    if constexpr (std::is_same_v<to_t, from_t>) {
      using Vec = at::vec::Vectorized<to_t>;
      int64_t i = 0;
      for (; i + Vec::size() <= count; i += Vec::size()) Vec::loadu(from + i).store(to + i);
      if (i < count) Vec::loadu(from + i, count - i).store(to + i, count - i);
      return;
    } else if constexpr (widens) {
      return load_run(to, from, 1, count);
    } else if constexpr (narrows) {
      return at::vec::convert(from, to, count);
    }
  }
  for (int64_t i = 0; i < count; ++i) to[i * to_stride] = converted<to_t>(from[i * from_stride]);
}

// to[c * to_stride + r] = from[r * from_stride + c]; 16-bit types go through a buffer of floats.
template <typename to_t, typename from_t>
void transpose_block(to_t* to, int64_t to_stride, const from_t* from, int64_t from_stride,
                     int64_t rows, int64_t cols) {
  if constexpr (std::is_same_v<to_t, from_t>) {
    transpose(from, from_stride, to, to_stride, rows, cols);
  } else if constexpr (std::is_same_v<to_t, float> || std::is_same_v<from_t, float>) {
    constexpr int64_t kRows = 16, kCols = 64;
    alignas(64) float buffer[kRows * kCols], turned[kRows * kCols];
    for (int64_t r = 0; r < rows; r += kRows) {
      const int64_t r_left = std::min(kRows, rows - r);
      for (int64_t c = 0; c < cols; c += kCols) {
        const int64_t c_left = std::min(kCols, cols - c);
        for (int64_t i = 0; i < r_left; ++i) {
          copy_run(buffer + i * kCols, 1, from + (r + i) * from_stride + c, 1, c_left);
        }
        transpose(buffer, kCols, turned, kRows, r_left, c_left);
        for (int64_t i = 0; i < c_left; ++i) {
          copy_run(to + (c + i) * to_stride + r, 1, turned + i * kRows, 1, r_left);
        }
      }
    }
  } else {
    for (int64_t c = 0; c < cols; ++c) copy_run(to + c * to_stride, 1, from + c, from_stride, rows);
  }
}

// Which side of a move lies in main memory: its order is followed.
enum class Follow { kFrom, kTo };

template <typename to_t, typename from_t>
void move_block(to_t* to, const from_t* from, MoveDims dims, Follow follow) {
  if (follow == Follow::kFrom) {
    dims.sort_and_merge([](const MoveDim& dim) { return dim.from; });
  } else {
    dims.sort_and_merge([](const MoveDim& dim) { return dim.to; });
  }
  int read = -1, write = -1;  // the indices of the smallest strides
  for (int i = 0; i < dims.count(); ++i) {
    if (dims[i].size == 0) return;
    if (read < 0 || dims[i].from <= dims[read].from) read = i;
    if (write < 0 || dims[i].to <= dims[write].to) write = i;
  }
  if (read < 0) {
    *to = converted<to_t>(*from);
    return;
  }
  if (read != write && dims[read].from == 1 && dims[write].to == 1) {
    const MoveDim fast = dims[read], slow = dims[write];
    dims.take(std::max(read, write));
    dims.take(std::min(read, write));
    for_each_offset(dims, [&](int64_t from_offset, int64_t to_offset) {
      transpose_block(to + to_offset, fast.to, from + from_offset, slow.from, slow.size, fast.size);
    });
    return;
  }
  const MoveDim run = dims.take(follow == Follow::kFrom ? read : write);
  for_each_offset(dims, [&](int64_t from_offset, int64_t to_offset) {
    copy_run(to + to_offset, run.to, from + from_offset, run.from, run.size);
  });
}

}  // namespace
}  // namespace pyext
