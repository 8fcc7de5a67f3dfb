// What the backward pass of bilinear_pool multiplies the features with, block by block.
#pragma once

#include <algorithm>
#include <vector>

#include "bilinear_pool.h"
#include "cpu/features.h"
#include "cpu/inner_product.h"
#include "packed_triangle.h"
#include "signed_sqrt.h"

namespace pyext {
namespace {

// The matrix that the features are multiplied with in the backward pass, formed from the gradient
// and the result: dG + dG^T of a symmetric product, else dG or dG^T.
template <typename acc_t>
class GradientBlocks {
  using Vec = at::vec::Vectorized<acc_t>;

 public:
  GradientBlocks(const at::Tensor& grad, const at::Tensor& result, const at::Tensor& norm,
                 int64_t rows, bool symmetric, const BilinearPoolOptions& options)
      : grad_(read_from(grad)),
        result_(read_from(result)),
        norms_(norm.const_data_ptr<acc_t>()),
        sample_size_(result.numel() / result.size(0)),
        rows_(rows),
        cols_(symmetric ? rows : result.size(2)),
        symmetric_(symmetric),
        options_(options),
        projections_(result.size(0)) {}

  // <grad, result> of some samples: how much of the gradient lies along the result.
  void project(int64_t first, int64_t samples) {
    if (!options_.l2) return;
    constexpr int64_t kRun = 4096;
    const int64_t runs = (sample_size_ + kRun - 1) / kRun;
    std::vector<double> sums(samples * runs);
    share_tasks(samples * runs, [&](Tasks& take) {
      for (int64_t task = take(); task >= 0; task = take()) {
        const int64_t begin = task % runs * kRun, count = std::min(kRun, sample_size_ - begin);
        const int64_t offset = (first + task / runs) * sample_size_ + begin;
        sums[task] = inner_product<acc_t>(grad_, result_, offset, count);
      }
    });
    for (int64_t sample = 0; sample < samples; ++sample) {
      double sum = 0;
      for (int64_t run = 0; run < runs; ++run) sum += sums[sample * runs + run];
      const bool is_clamped = norms_[first + sample] <= static_cast<acc_t>(kLeastNorm);
      projections_[first + sample] = static_cast<acc_t>(is_clamped ? 0.0 : sum);
    }
  }

  // A block of dG (of dG + dG^T), or of its transpose.
  template <bool transposed>
  void form(int64_t sample, int64_t row, int64_t height, int64_t col, int64_t width, acc_t* to,
            int64_t to_stride) const {
    const auto z = make_scratch<acc_t>(height * to_stride);
    const auto mirrored =
        make_scratch<acc_t>(symmetric_ && !options_.packed ? height * to_stride : 0);
    if (options_.packed) {
      unpack(grad_, sample, row, height, col, width, to, to_stride);
      unpack(result_, sample, row, height, col, width, z.get(), to_stride);
    } else {
      read(grad_, sample, row, height, col, width, to, to_stride, transposed);
      read(result_, sample, row, height, col, width, z.get(), to_stride, transposed);
      if (symmetric_) {
        read(grad_, sample, row, height, col, width, mirrored.get(), to_stride, true);
      }
    }
    const acc_t norm = norms_[sample], t = projections_[sample];
    const Vec norms(norm), along(t), scale(static_cast<acc_t>(options_.scale) / norm);
    const Vec two(acc_t(2)), root_half(static_cast<acc_t>(kSqrtHalf)),
        root_two(static_cast<acc_t>(kSqrtTwo));
    constexpr int64_t kWidth = Vec::size();
    for (int64_t i = 0; i < height; ++i) {
      acc_t* line = to + i * to_stride;
      for (int64_t j = 0; j < width; j += kWidth) {
        const int64_t count = std::min(kWidth, width - j);
        auto value = Vec::loadu(z.get() + i * to_stride + j, count);
        auto sum = Vec::loadu(line + j, count);
        if (options_.packed) {  // the stored value is sqrt(2) Z, its gradient counts twice
          sum = (sum - value * along) * root_two;
          value = value * root_half;
        } else if (symmetric_) {
          sum = sum + Vec::loadu(mirrored.get() + i * to_stride + j, count) - two * value * along;
        } else {
          sum = sum - value * along;
        }
        sum = sum * scale;
        if (options_.signed_sqrt) sum = signed_sqrt_gradient(sum, value * norms);
        sum.store(line + j, count);
      }
      if (options_.packed && row + i >= col && row + i < col + width) {
        const int64_t j = row + i - col;  // on the diagonal the stored value is Z
        line[j] = diagonal(sample, row + i, norm, t);
      }
    }
  }

 private:
  acc_t diagonal(int64_t sample, int64_t i, acc_t norm, acc_t t) const {
    const int64_t at = sample * sample_size_ + packed_row(i, rows_);
    const auto value = load_one<acc_t>(result_.data, result_.dtype, at);
    const auto grad = load_one<acc_t>(grad_.data, grad_.dtype, at);
    const acc_t dg = (grad - value * t) * static_cast<acc_t>(options_.scale) / norm;
    return 2 * (options_.signed_sqrt ? signed_sqrt_gradient(dg, value * norm) : dg);
  }

  void read(const ProductTensor& from, int64_t sample, int64_t row, int64_t height, int64_t col,
            int64_t width, acc_t* to, int64_t to_stride, bool transposed) const {
    MoveDims move;
    move.add(height, transposed ? 1 : cols_, to_stride);
    move.add(width, transposed ? cols_ : 1, 1);
    const int64_t offset = transposed ? col * cols_ + row : row * cols_ + col;
    gather(to, from, sample * sample_size_ + offset, move);
  }

  // A block of the symmetric matrix whose upper triangle is packed.
  void unpack(const ProductTensor& from, int64_t sample, int64_t row, int64_t height, int64_t col,
              int64_t width, acc_t* to, int64_t to_stride) const {
    const int64_t begin = sample * sample_size_;
    dispatch_dtype(from.dtype, [&](auto zero) {
      const auto* data = static_cast<const decltype(zero)*>(from.data) + begin;
      for (int64_t i = row; i < row + height; ++i) {
        const int64_t first = std::max(col, i), count = col + width - first;
        if (count > 0) {
          copy_run(to + (i - row) * to_stride + first - col, 1,
                   data + packed_row(i, rows_) + first - i, 1, count);
        }
      }
      for (int64_t j = col; j < col + width; ++j) {  // below the diagonal: rows of the packed one
        const int64_t first = std::max(row, j + 1);
        for (int64_t i = first; i < row + height; ++i) {
          to[(i - row) * to_stride + j - col] =
              static_cast<acc_t>(data[packed_row(j, rows_) + i - j]);
        }
      }
    });
  }

  ProductTensor grad_, result_;
  const acc_t* norms_;
  int64_t sample_size_, rows_, cols_;
  bool symmetric_;
  BilinearPoolOptions options_;
  std::vector<acc_t> projections_;
};

}  // namespace
}  // namespace pyext
