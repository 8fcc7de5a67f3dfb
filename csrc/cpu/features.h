// Features (N, D, S) as operands of the tiled core: products of channels with channels, summed over
// positions, and products of a matrix of channels with features.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cpu/factors.h"
#include "cpu/tiles.h"

namespace pyext {
namespace {

// An extent, cut into steps.
struct Cut {
  int64_t size, step;
  int64_t count() const { return (size + step - 1) / step; }
  int64_t begin(int64_t i) const { return i * step; }
  int64_t extent(int64_t i) const { return std::min(step, size - i * step); }
};

// Steps of even size, none above `most`, and multiples of `unit` but for the last.
inline Cut cut_evenly(int64_t size, int64_t most, int64_t unit) {
  const int64_t pieces = std::max<int64_t>(1, (size + most - 1) / most);
  return {size, ((size + pieces - 1) / pieces + unit - 1) / unit * unit};
}

// The depth of a sum: all of it, or pieces of even size.
template <typename acc_t>
Cut cut_depth(int64_t size) {
  constexpr int64_t kDepth = 1024 / sizeof(acc_t);
  return cut_evenly(size, size <= kDepth * 3 / 2 ? kDepth * 3 / 2 : kDepth, 1);
}

// Rows of tiles, and the unit of their columns: whole micro-kernels of every instruction set.
constexpr int64_t kEdge = 48, kMostColumns = 240;

// A batch of matrices of any strides and dtype, less a mean per row if there are means. A mean is
// the sum of two numbers: one alone is too coarse for features far from zero.
template <typename acc_t>
struct Features {
  ProductTensor tensor;
  int64_t samples, rows, cols;
  int64_t sample_stride, row_stride, col_stride;
  Scratch<acc_t> means;

  Features(const at::Tensor& x, bool center)
      : tensor(read_from(x)),
        samples(x.size(0)),
        rows(x.size(1)),
        cols(x.size(2)),
        sample_stride(x.stride(0)),
        row_stride(x.stride(1)),
        col_stride(x.stride(2)) {
    if (center) form_means();
  }

  // A block, packed; transposed: to[col * to_stride + row].
  void pack(int64_t sample, int64_t row, int64_t height, int64_t col, int64_t width, acc_t* to,
            int64_t to_stride, bool transposed = false) const {
    MoveDims move;
    move.add(height, row_stride, transposed ? 1 : to_stride);
    move.add(width, col_stride, transposed ? to_stride : 1);
    gather(to, tensor, sample * sample_stride + row * row_stride + col * col_stride, move);
    if (means == nullptr) return;
    const acc_t* mean = means.get() + sample * rows + row;
    const acc_t* rest = mean + samples * rows;
    for (int64_t i = 0; i < (transposed ? width : height); ++i) {
      acc_t* line = to + i * to_stride;
      if (transposed) {
        for (int64_t j = 0; j < height; ++j) line[j] = (line[j] - mean[j]) - rest[j];
      } else {
        for (int64_t j = 0; j < width; ++j) line[j] = (line[j] - mean[i]) - rest[i];
      }
    }
  }

  // The block where it lies, if it can be read there.
  const acc_t* in_place(int64_t sample, int64_t row, int64_t col) const {
    return static_cast<const acc_t*>(tensor.data) + sample * sample_stride + row * row_stride +
           col * col_stride;
  }
  bool is_in_place() const {
    return tensor.dtype == c10::CppTypeToScalarType<acc_t>::value && means == nullptr &&
           (col_stride == 1 || cols == 1) &&
           row_stride * static_cast<int64_t>(sizeof(acc_t)) % 4096 != 0;
  }

 private:
  static constexpr int64_t kRows = 32, kCols = 256;

  void form_means() {
    const int64_t count = samples * rows, blocks = (rows + kRows - 1) / kRows;
    auto found = make_scratch<acc_t>(2 * count);
    share_tasks(samples * blocks, [&](Tasks& take) {
      for (int64_t task = take(); task >= 0; task = take()) {
        const int64_t sample = task / blocks, row = task % blocks * kRows;
        const int64_t height = std::min(kRows, rows - row);
        acc_t* mean = found.get() + sample * rows + row;
        const acc_t none[kRows] = {};
        mean_beyond(sample, row, height, none, mean);
        mean_beyond(sample, row, height, mean, mean + count);
      }
    });
    means = std::move(found);
  }

  // The means of rows less `shift`.
  void mean_beyond(int64_t sample, int64_t row, int64_t height, const acc_t* shift,
                   acc_t* result) const {
    alignas(64) acc_t block[kRows * kCols];
    double sums[kRows] = {};
    for (int64_t col = 0; col < cols; col += kCols) {
      const int64_t width = std::min(kCols, cols - col);
      pack(sample, row, height, col, width, block, kCols);
      for (int64_t i = 0; i < height; ++i) {
        const acc_t* line = block + i * kCols;
        for (int64_t j = 0; j < width; ++j) sums[i] += static_cast<double>(line[j] - shift[i]);
      }
    }
    for (int64_t i = 0; i < height; ++i) {
      result[i] = static_cast<acc_t>(sums[i] / static_cast<double>(cols));
    }
  }
};

// Zeros the columns that fill up the last vector.
template <typename acc_t>
Block<acc_t> padded(acc_t* data, int64_t rows, int64_t cols, int64_t row_stride) {
  constexpr int64_t kWidth = at::vec::Vectorized<acc_t>::size();
  const int64_t whole = (cols + kWidth - 1) / kWidth * kWidth;
  for (int64_t i = 0; i < rows && whole > cols; ++i) {
    std::fill(data + i * row_stride + cols, data + i * row_stride + whole, acc_t(0));
  }
  return {data, rows, cols, row_stride, 1};
}

// Features as the left operand: channels by positions.
template <typename acc_t>
struct ChannelRows {
  const Features<acc_t>& x;
  int64_t first;  // sample
  Cut m, k;

  bool in_place() const { return x.is_in_place(); }
  Block<acc_t> shape_of(int64_t i, int64_t s, const acc_t* data, int64_t row_stride) const {
    return {data, m.extent(i), k.extent(s), row_stride, 1};
  }
  Block<acc_t> block(int64_t batch, int64_t i, int64_t s, acc_t* scratch,
                     int64_t row_stride) const {
    if (in_place()) {
      return shape_of(i, s, x.in_place(first + batch, m.begin(i), k.begin(s)), x.row_stride);
    }
    x.pack(first + batch, m.begin(i), m.extent(i), k.begin(s), k.extent(s), scratch, row_stride);
    return shape_of(i, s, scratch, row_stride);
  }
};

// Features as the right operand: positions by channels, or (as they are) channels by positions.
template <typename acc_t, bool transposed>
struct FeatureColumns {
  const Features<acc_t>& x;
  int64_t first;
  Cut k, n;

  int64_t matrix(int64_t batch) const { return batch; }
  Block<acc_t> block(int64_t batch, int64_t s, int64_t j, acc_t* scratch,
                     int64_t row_stride) const {
    const Cut &rows = transposed ? n : k, &cols = transposed ? k : n;
    const int64_t row = transposed ? j : s, col = transposed ? s : j;
    x.pack(first + batch, rows.begin(row), rows.extent(row), cols.begin(col), cols.extent(col),
           scratch, row_stride, transposed);
    return padded(scratch, k.extent(s), n.extent(j), row_stride);
  }
};

template <typename acc_t>
TileGrid grid_of(int64_t batches, const Cut& m, const Cut& n, const Cut& k) {
  constexpr int64_t kKeptBytes = 768 << 10;
  TileGrid grid;
  grid.batches = batches;
  grid.m_tiles = m.count(), grid.n_tiles = n.count(), grid.k_tiles = k.count();
  grid.rows = std::min(m.step, m.size);
  grid.cols = std::min(n.step, n.size);
  grid.depth = std::min(k.step, k.size);
  const int64_t groups =
      std::max<int64_t>(1, 4 * at::get_num_threads() / std::max<int64_t>(1, batches * n.count()));
  const int64_t tile = grid.rows * grid.cols * static_cast<int64_t>(sizeof(acc_t));
  const int64_t most = k.count() > 1 ? std::max<int64_t>(1, kKeptBytes / tile) : m.count();
  grid.m_group = std::min(most, (m.count() + groups - 1) / groups);
  return grid;
}

// The products of the channels of x with those of y, or of x with itself, of some samples:
// store(batch, m, n, from, tile, row_stride) gets every tile. Without y only those columns of a
// tile are there that do not lie before its rows, those `from` on; what lies beyond its rows stands
// for its mirror image too.
template <typename acc_t>
struct Gram {
  const Features<acc_t>& x;
  const Features<acc_t>* y;
  Cut m, n, k;

  Gram(const Features<acc_t>& x_, const Features<acc_t>* y_)
      : x(x_),
        y(y_),
        m{x.rows, kEdge},
        n(cut_evenly(y ? y->rows : x.rows, kMostColumns, kEdge)),
        k(cut_depth<acc_t>(x.cols)) {}

  template <typename Store>
  void run(int64_t first, int64_t samples, const Store& store) const {
    const auto first_column = [this](int64_t i, int64_t j) {
      const int64_t from = y != nullptr ? 0 : std::max<int64_t>(0, m.begin(i) - n.begin(j));
      return from < n.extent(j) ? from : -1;
    };
    multiply_tiles<acc_t>(
        grid_of<acc_t>(samples, m, n, k), ChannelRows<acc_t>{x, first, m, k},
        FeatureColumns<acc_t, true>{y ? *y : x, first, k, n},
        [&](int64_t batch, int64_t i, int64_t j, acc_t* tile, int64_t row_stride) {
          store(batch, i, j, first_column(i, j), tile, row_stride);
        },
        first_column);
  }
};

// A matrix that is formed while it is packed, times features: former(sample, row, rows, col, cols,
// to, to_stride) forms a block of it.
template <typename acc_t, typename Former>
struct FormedRows {
  const Former& former;
  int64_t first;
  Cut m, k;

  bool in_place() const { return false; }
  Block<acc_t> shape_of(int64_t i, int64_t s, const acc_t* data, int64_t row_stride) const {
    return {data, m.extent(i), k.extent(s), row_stride, 1};
  }
  Block<acc_t> block(int64_t batch, int64_t i, int64_t s, acc_t* scratch,
                     int64_t row_stride) const {
    former(first + batch, m.begin(i), m.extent(i), k.begin(s), k.extent(s), scratch, row_stride);
    return shape_of(i, s, scratch, row_stride);
  }
};

// out (N, rows, S), contiguous, = matrices (N, rows, x.rows) times x, for some samples.
template <typename acc_t, typename Former>
void multiply_formed(const Former& former, const Features<acc_t>& x, const at::Tensor& out,
                     int64_t first, int64_t samples) {
  const Cut m{out.size(1), kEdge}, n = cut_evenly(x.cols, kMostColumns, kEdge),
                                   k = cut_depth<acc_t>(x.rows);
  const ProductTensor to{out.data_ptr(), out.scalar_type()};
  multiply_tiles<acc_t>(
      grid_of<acc_t>(samples, m, n, k), FormedRows<acc_t, Former>{former, first, m, k},
      FeatureColumns<acc_t, false>{x, first, k, n},
      [&](int64_t batch, int64_t i, int64_t j, acc_t* tile, int64_t row_stride) {
        MoveDims move;
        move.add(m.extent(i), row_stride, x.cols);
        move.add(n.extent(j), 1, 1);
        scatter(to, ((first + batch) * m.size + m.begin(i)) * x.cols + n.begin(j), tile, move);
      },
      [](int64_t, int64_t) { return 0; });
}

// Calls work(first, samples) for stretches of samples whose matrices stay in cache together.
template <typename acc_t, typename Work>
void for_stretches(int64_t samples, int64_t matrix, const Work& work) {
  constexpr int64_t kBytes = 4 << 20;
  const int64_t bytes = std::max<int64_t>(1, matrix * static_cast<int64_t>(sizeof(acc_t)));
  const int64_t stretch = std::max<int64_t>(at::get_num_threads(), kBytes / bytes);
  for (int64_t first = 0; first < samples; first += stretch) {
    work(first, std::min(stretch, samples - first));
  }
}

}  // namespace
}  // namespace pyext
