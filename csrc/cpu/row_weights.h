// Weights of the rows of a matrix product: finished tiles are multiplied by them and their rows
// added up, so that of the product only those sums are ever in memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "cpu/bricks.h"
#include "cpu/pair_product.h"

namespace pyext {
namespace {

template <typename acc_t>
class RowWeights {
 public:
  // The strides of `weights` stand in ProductDim::in[1] and GroupDim::pair[0].
  RowWeights(const ProductTensor& weights, const c10::SmallVectorImpl<ProductDim>& batch,
             const IndexGroup& rows, const IndexGroup& cols, int64_t sums, int64_t row_stride)
      : weights_({weights, ones()}, batch, rows, cols),
        sums_(make_scratch<acc_t>(sums * row_stride)),
        row_stride_(row_stride) {}

  // Adds the rows of a tile to sum number `sum` and returns it; the `first` ones begin it. Rows are
  // padded to whole vectors.
  acc_t* add(int64_t sum, int64_t batch, const Brick& rows, const Brick& cols, const acc_t* tile,
             bool first) const {
    using Vec = at::vec::Vectorized<acc_t>;
    constexpr int64_t kLongest = 32;  // chain of terms
    acc_t* sums = sums_.get() + sum * row_stride_;
    const auto weights = make_scratch<acc_t>(rows.size * row_stride_);
    weights_.block(batch, rows, cols, weights.get(), row_stride_);
    for (int64_t row = 0; row < rows.size; row += kLongest, first = false) {
      const int64_t end = std::min(row + kLongest, rows.size);
      for (int64_t j = 0; j < cols.size; j += Vec::size()) {
        Vec chain(acc_t(0));
        for (int64_t i = row * row_stride_ + j; i < end * row_stride_; i += row_stride_) {
          chain = multiply_add(Vec::loadu(tile + i), Vec::loadu(weights.get() + i), chain);
        }
        (first ? chain : Vec::loadu(sums + j) + chain).store(sums + j);
      }
    }
    return sums;
  }

 private:
  static ProductTensor ones() {  // the second factor of a product of one
    static constexpr acc_t one = 1;
    return {const_cast<acc_t*>(&one), c10::CppTypeToScalarType<acc_t>::value};
  }

  PairProduct<acc_t> weights_;
  Scratch<acc_t> sums_;
  int64_t row_stride_;
};

}  // namespace
}  // namespace pyext
