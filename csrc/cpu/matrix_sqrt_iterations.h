// The iterations of matrix_sqrt_pool on the matrices of one sample, which stay in cache through all
// of them. Every product is symmetric and computed by one triangle of tiles.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "cpu/features.h"
#include "cpu/inner_product.h"
#include "matrix_sqrt_pool.h"

namespace pyext {
namespace {

// A matrix whose rows are whole vectors, filled up with zeros.
template <typename acc_t>
struct Square {
  explicit Square(int64_t size_)
      : size(size_), stride(padded_row<acc_t>(size_)), data(make_scratch<acc_t>(size * stride)) {
    std::fill(data.get(), data.get() + size * stride, acc_t(0));
  }
  acc_t* row(int64_t i) const { return data.get() + i * stride; }
  double inner_product(const Square& other) const {
    return pyext::inner_product(data.get(), other.data.get(), size * stride);
  }

  int64_t size, stride;
  Scratch<acc_t> data;
};

// Writes rows that begin on the diagonal or beyond it, and their mirror image.
template <typename acc_t>
void put_symmetric(const Square<acc_t>& to, int64_t row, int64_t height, int64_t col, int64_t width,
                   const acc_t* tile, int64_t row_stride) {
  for (int64_t i = 0; i < height; ++i) {
    copy_run(to.row(row + i) + col, 1, tile + i * row_stride, 1, width);
  }
  const int64_t diagonal = row == col ? std::min(height, width) : 0;
  for (int64_t i = 1; i < diagonal; ++i) {  // equal in theory, so made equal to the last bit
    for (int64_t j = 0; j < i; ++j) to.row(row + i)[col + j] = tile[j * row_stride + i];
  }
  transpose(tile + diagonal, row_stride, to.row(col + diagonal) + row, to.stride, height,
            width - diagonal);
}

template <typename acc_t>
using Factors = std::pair<const Square<acc_t>*, const Square<acc_t>*>;

// out = diagonal I + times (sum of products), which is symmetric, though each product need not be.
template <typename acc_t>
class SymmetricProducts {
 public:
  explicit SymmetricProducts(int64_t size) : edge_{size, kEdge}, depth_(cut_depth<acc_t>(size)) {}

  template <size_t count>
  void operator()(const Square<acc_t>& out, double diagonal, double times,
                  const std::array<Factors<acc_t>, count>& products) const {
    TileGrid grid = grid_of<acc_t>(1, edge_, edge_, depth_);
    grid.k_tiles *= static_cast<int64_t>(count);
    const auto scale = static_cast<acc_t>(times);
    multiply_tiles<acc_t>(
        grid, Left<count>{*this, products}, Right<count>{*this, products},
        [&](int64_t, int64_t i, int64_t j, acc_t* tile, int64_t row_stride) {
          const int64_t height = edge_.extent(i), width = edge_.extent(j);
          for (int64_t r = 0; r < height; ++r) {
            acc_t* line = tile + r * row_stride;
            for (int64_t c = 0; c < width; ++c) line[c] *= scale;
            if (i == j) line[r] += static_cast<acc_t>(diagonal);
          }
          put_symmetric(out, edge_.begin(i), height, edge_.begin(j), width, tile, row_stride);
        },
        [](int64_t i, int64_t j) { return i > j ? -1 : 0; });
  }

 private:
  // Both operands are read where they lie; the sum runs over the products one after the other.
  template <size_t count>
  struct Left {
    const SymmetricProducts& owner;
    const std::array<Factors<acc_t>, count>& products;
    bool in_place() const { return true; }
    Block<acc_t> shape_of(int64_t, int64_t, const acc_t*, int64_t) const { return {}; }
    Block<acc_t> block(int64_t, int64_t i, int64_t s, acc_t*, int64_t) const {
      const Cut &edge = owner.edge_, &depth = owner.depth_;
      const Square<acc_t>& x = *products[s / depth.count()].first;
      const int64_t k = s % depth.count();
      return {x.row(edge.begin(i)) + depth.begin(k), edge.extent(i), depth.extent(k), x.stride, 1};
    }
  };
  template <size_t count>
  struct Right {
    const SymmetricProducts& owner;
    const std::array<Factors<acc_t>, count>& products;
    int64_t matrix(int64_t) const { return 0; }
    Block<acc_t> block(int64_t, int64_t s, int64_t j, acc_t*, int64_t) const {
      const Cut &edge = owner.edge_, &depth = owner.depth_;
      const Square<acc_t>& x = *products[s / depth.count()].second;
      const int64_t k = s % depth.count();
      return {x.row(depth.begin(k)) + edge.begin(j), depth.extent(k), edge.extent(j), x.stride, 1};
    }
  };

  Cut edge_, depth_;
};

// The matrices of one sample, and the iterations on them.
template <typename acc_t>
class Iterations {
 public:
  using Matrix = Square<acc_t>;

  Iterations(const Features<acc_t>& x, bool with_change)
      : x_(x), covariance_(x, nullptr), products_(x.rows), with_change_(with_change) {
    for (auto* matrix : {&a_, &t_, &y_, &z_, &next_}) matrix->emplace(x.rows);
    if (!with_change) return;
    for (auto* matrix : {&dt_, &dy_, &dz_}) matrix->emplace(x.rows);
  }

  // The covariance, divided by its trace.
  void norm_covariance(int64_t sample) {
    const auto scale = static_cast<acc_t>(1.0 / static_cast<double>(x_.cols));
    covariance_.run(
        sample, 1,
        [&](int64_t, int64_t i, int64_t j, int64_t from, acc_t* tile, int64_t row_stride) {
          const Cut &m = covariance_.m, &n = covariance_.n;
          const int64_t height = m.extent(i), width = n.extent(j) - from;
          tile += from;
          for (int64_t r = 0; r < height; ++r) {
            for (int64_t c = 0; c < width; ++c) tile[r * row_stride + c] *= scale;
          }
          put_symmetric(*a_, m.begin(i), height, n.begin(j) + from, width, tile, row_stride);
        });
    double sum = 0;
    for (int64_t i = 0; i < a_->size; ++i) sum += static_cast<double>(a_->row(i)[i]);
    is_clamped = sum < kLeastTrace;
    trace = is_clamped ? kLeastTrace : sum;
    const auto divisor = static_cast<acc_t>(trace);
    for (int64_t i = 0; i < a_->size; ++i) {
      for (int64_t j = 0; j < a_->size; ++j) a_->row(i)[j] /= divisor;
    }
  }

  // The root of the normed covariance; with_change: the change of it, instead, when the covariance
  // changes by what direction() holds.
  const Matrix& run(int64_t iterations) {
    using One = std::array<Factors<acc_t>, 1>;
    using Two = std::array<Factors<acc_t>, 2>;
    const Matrix* y = &*a_;
    for (int64_t i = 0; i < iterations; ++i) {
      const bool first = i == 0, last = i + 1 == iterations;
      if (first) {
        fill(*t_, 1.5, -0.5, *a_);
      } else {
        products_(*t_, 1.5, -0.5, One{{{&*z_, y}}});
      }
      if (with_change_) {
        if (first) {
          fill(*dt_, 0, -0.5, *dy_);
        } else {
          products_(*dt_, 0, -0.5, Two{{{&*dz_, y}, {&*z_, &*dy_}}});
        }
        products_(*next_, 0, 1, Two{{{&*dy_, &*t_}, {y, &*dt_}}});
        std::swap(dy_, next_);
        if (last) return *dy_;
        if (first) {
          std::swap(dz_, dt_);
        } else {
          products_(*next_, 0, 1, Two{{{&*dt_, &*z_}, {&*t_, &*dz_}}});
          std::swap(dz_, next_);
        }
      }
      products_(*next_, 0, 1, One{{{y, &*t_}}});
      std::swap(y_, next_);
      y = &*y_;
      if (last) break;
      if (first) {
        std::swap(z_, t_);
      } else {
        products_(*next_, 0, 1, One{{{&*t_, &*z_}}});
        std::swap(z_, next_);
      }
    }
    return *y;
  }

  const Matrix& matrix() const { return *a_; }
  Matrix& direction() { return *dy_; }

  double trace = 0;
  bool is_clamped = false;

 private:
  // to = diagonal I + times x
  static void fill(const Matrix& to, double diagonal, double times, const Matrix& x) {
    for (int64_t i = 0; i < x.size; ++i) {
      for (int64_t j = 0; j < x.size; ++j) to.row(i)[j] = static_cast<acc_t>(times) * x.row(i)[j];
      to.row(i)[i] += static_cast<acc_t>(diagonal);
    }
  }

  const Features<acc_t>& x_;
  Gram<acc_t> covariance_;
  SymmetricProducts<acc_t> products_;
  bool with_change_;
  std::optional<Matrix> a_, t_, y_, z_, next_, dt_, dy_, dz_;
};

}  // namespace
}  // namespace pyext
