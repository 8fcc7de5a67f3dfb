// The result of a contraction: where finished tiles are written, times alpha and on top of beta
// times what is there, and converted to its dtype.
#pragma once

#include <c10/core/Scalar.h>
#include <c10/util/complex.h>

#include <cstdint>

#include "cpu/bricks.h"
#include "cpu/factors.h"

namespace pyext {
namespace {

// Adds the indices of a brick to a move between one of the tensors, whose values have `parts`
// parts, and a packed tile, in which neighbouring values of the group lie `step` apart.
inline void add_brick(MoveDims& move, const IndexGroup& group, const Brick& brick,
                      int64_t GroupDim::* stride, int parts, int64_t step, bool packs) {
  for (int i = group.count() - 1; i >= 0; --i) {
    const int64_t outside = group.dims[i].*stride * parts;
    move.add(brick.extent[i], packs ? outside : step, packs ? step : outside);
    step *= brick.extent[i];
  }
}

// Complex numbers have their real and imaginary parts in two tiles, one below the other.
template <typename acc_t>
class ScaledResult {
 public:
  ScaledResult(const SumOfProducts& problem, int parts) : out_(problem.out), parts_(parts) {
    read_scalar(problem.alpha, alpha_);
    read_scalar(problem.beta, beta_);
    scales_ = alpha_[0] != acc_t(1) || alpha_[1] != acc_t(0);
    adds_ = beta_[0] != acc_t(0) || beta_[1] != acc_t(0);
  }

  // Where sums of type acc_t can be formed in place; else there is no such memory: nullptr.
  acc_t* memory() const {
    const bool as_it_is =
        parts_ == 1 && !scales_ && !adds_ && out_.dtype == c10::CppTypeToScalarType<acc_t>::value;
    return as_it_is ? static_cast<acc_t*>(out_.data) : nullptr;
  }

  // Multiplies a tile by alpha, before it is put.
  void scale(acc_t* tile, int64_t rows, int64_t cols, int64_t row_stride) const {
    if (!scales_) return;
    for (int64_t i = 0; i < rows; ++i) {
      acc_t* re = tile + i * row_stride;
      if (parts_ == 1) {
        for (int64_t j = 0; j < cols; ++j) re[j] *= alpha_[0];
      } else {
        acc_t* im = re + rows * row_stride;
        for (int64_t j = 0; j < cols; ++j) {
          const acc_t x = re[j], y = im[j];
          re[j] = alpha_[0] * x - alpha_[1] * y;
          im[j] = alpha_[0] * y + alpha_[1] * x;
        }
      }
    }
  }

  // Writes a tile of m.size x n.size values to the result, whose strides the groups give.
  void put(int64_t offset, const IndexGroup& rows, const Brick& m, const IndexGroup& cols,
           const Brick& n, const acc_t* tile, int64_t row_stride) const {
    MoveDims move;
    if (parts_ > 1) move.add(2, m.size * row_stride, 1);
    add_brick(move, rows, m, &GroupDim::y, parts_, row_stride, false);
    add_brick(move, cols, n, &GroupDim::y, parts_, 1, false);
    if (!adds_) return scatter(out_, offset * parts_, tile, move);
    const auto sum = make_scratch<acc_t>(m.size * parts_ * row_stride);
    gather(sum.get(), out_, offset * parts_, move.reversed());
    for (int64_t i = 0; i < m.size; ++i) {
      acc_t* re = sum.get() + i * row_stride;
      const acc_t* added = tile + i * row_stride;
      if (parts_ == 1) {
        for (int64_t j = 0; j < n.size; ++j) re[j] = beta_[0] * re[j] + added[j];
      } else {
        acc_t* im = re + m.size * row_stride;
        const acc_t* added_im = added + m.size * row_stride;
        for (int64_t j = 0; j < n.size; ++j) {
          const acc_t x = re[j], y = im[j];
          re[j] = beta_[0] * x - beta_[1] * y + added[j];
          im[j] = beta_[0] * y + beta_[1] * x + added_im[j];
        }
      }
    }
    scatter(out_, offset * parts_, sum.get(), move);
  }

 private:
  static void read_scalar(const c10::Scalar& scalar, acc_t (&parts)[2]) {
    if (scalar.isComplex()) {
      const auto value = scalar.toComplexDouble();
      parts[0] = static_cast<acc_t>(value.real());
      parts[1] = static_cast<acc_t>(value.imag());
    } else {
      parts[0] = scalar.to<acc_t>();
      parts[1] = acc_t(0);
    }
  }

  ProductTensor out_;
  int parts_;
  acc_t alpha_[2], beta_[2];
  bool scales_, adds_;
};

}  // namespace
}  // namespace pyext
