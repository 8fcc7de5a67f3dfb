// How a tile of cross_entropy meets memory: blocks of logits and probabilities of any strides and
// dtype into contiguous scratch of the arithmetic type, and blocks of the gradient back.
#pragma once

#include <algorithm>
#include <memory>

#include "cpu/blocks.h"
#include "cpu/cross_entropy_walk.h"
#include "cpu/transpose.h"
#include "cross_entropy_problem.h"

namespace pyext {
namespace {

constexpr int64_t kTileRows = 64;
constexpr int64_t kRowBlock = 2048;   // classes; 8 KiB of float logits stay in the first cache
constexpr int64_t kColumnBlock = 64;  // classes of 64 rows, 16 KiB

template <typename acc_t, bool columns>
class TileMemory {
 protected:
  static constexpr int64_t kRows = columns ? kTileRows : 1;
  static constexpr int64_t kBlock = columns ? kColumnBlock : kRowBlock;
  static constexpr int64_t kBlockSize = kBlock * kRows;
  static constexpr int64_t kPadding = 64;  // whole vectors are stored at the end of a row

  struct Block {
    const acc_t* data;
    int64_t step;     // from class to class, where columns
    int64_t classes;  // in this block
  };

  explicit TileMemory(const CrossEntropyProblem& p)
      : p_(p),
        plain_logits_(p.logit_scale == 1.0 && !p.capped),
        blocks_((p.classes + kBlock - 1) / kBlock),
        z_(make_scratch<acc_t>(kBlockSize + kPadding)),
        q_(p.probabilities != nullptr ? make_scratch<acc_t>(kBlockSize + kPadding) : nullptr),
        d_(make_scratch<acc_t>(kBlockSize + kPadding)) {}

  void move_to(int64_t row, int64_t rows) {
    row_ = row;
    rows_ = rows;
    const auto& layout = p_.layout;
    for (int k = 0; k < RowLayout::kOperands; ++k) {
      const auto operand = static_cast<RowLayout::Operand>(k);
      offset_[k] = layout.offset(operand, row);
      row_stride_[k] = layout.dims > 0 ? layout.strides[k][layout.dims - 1] : 0;
    }
  }

  static const acc_t* array(const void* values) { return static_cast<const acc_t*>(values); }
  static const acc_t* offset_by(const acc_t* values, int64_t c) {
    return values != nullptr ? values + c : nullptr;
  }

  bool ignored(int64_t r) const {
    if (p_.target == nullptr) return false;
    return p_.target[row_ + r] == p_.ignore_index &&
           (p_.target_b == nullptr || p_.target_b[row_ + r] == p_.ignore_index);
  }
  bool all_ignored() const {
    for (int64_t r = 0; r < rows_; ++r) {
      if (!ignored(r)) return false;
    }
    return true;
  }

  bool same_dtype() const { return p_.dtype == c10::CppTypeToScalarType<acc_t>::value; }
  int64_t classes_of(int64_t b) const { return std::min(kBlock, p_.classes - b * kBlock); }

  // The values of one operand for block b, in the arithmetic type, at to[class * kRows + row].
  void load(acc_t* to, RowLayout::Operand operand, const void* tensor, at::ScalarType dtype,
            int64_t b) {
    const int64_t n = classes_of(b), class_stride = p_.layout.class_stride[operand];
    const int64_t row_stride = row_stride_[operand];
    const int64_t offset = offset_[operand] + b * kBlock * class_stride;
    dispatch_dtype(dtype, [&](auto zero) {
      using scalar_t = decltype(zero);
      const auto* from = static_cast<const scalar_t*>(tensor) + offset;
      if constexpr (!columns) {
        load_run(to, from, class_stride, n);
      } else {
        // The lanes of rows that are not there are computed with too.
        if (rows_ < kRows) std::fill_n(to, n * kRows, acc_t(0));
        if (class_stride == 1 && row_stride != 1) {
          if constexpr (std::is_same_v<scalar_t, acc_t>) {
            transpose(from, row_stride, to, kRows, rows_, n);
          } else {
            for (int64_t r = 0; r < rows_; ++r) {
              load_run(d_.get() + r * kBlock, from + r * row_stride, 1, n);
            }
            transpose(d_.get(), kBlock, to, kRows, rows_, n);
          }
          return;
        }
        // What comes next is the next classes, or the next rows where these are all classes.
        const int64_t ahead = blocks_ > 1 ? n * class_stride : kRows * row_stride;
        for (int64_t c = 0; c < n; ++c) {
          const auto* run = from + c * class_stride;
          for (int64_t r = 0; r < kRows; r += 64 / sizeof(scalar_t)) {
            __builtin_prefetch(run + ahead + r);
          }
          load_run(to + c * kRows, run, row_stride, rows_);
        }
      }
    });
  }

  // Where the logits of block b lie, if they can be worked on there; else null.
  template <typename scalar_t>
  const scalar_t* logits_where_they_lie(int64_t b) const {
    const bool can = !columns && plain_logits_ &&
                     p_.dtype == c10::CppTypeToScalarType<scalar_t>::value &&
                     p_.layout.class_stride[RowLayout::kInput] == 1;
    if (!can) return nullptr;
    return static_cast<const scalar_t*>(p_.input) + offset_[RowLayout::kInput] + b * kBlock;
  }

  Block load_logits(int64_t b) {
    const int64_t n = classes_of(b);
    if (const auto* logits = logits_where_they_lie<acc_t>(b)) return {logits, kRows, n};
    load(z_.get(), RowLayout::kInput, p_.input, p_.dtype, b);
    if (!plain_logits_) {
      for (int64_t i = 0; i < n * kRows; ++i) z_[i] = transformed(z_[i]);
    }
    return {z_.get(), kRows, n};
  }
  void load_probabilities(int64_t b) {
    load(q_.get(), RowLayout::kProbabilities, p_.probabilities, p_.probabilities_dtype, b);
  }

  acc_t transformed(acc_t x) const {
    return transformed_logit(x, static_cast<acc_t>(p_.logit_scale), static_cast<acc_t>(p_.softcap),
                             p_.capped);
  }
  acc_t logit_at(int64_t r, int64_t y) const {
    if (columns && blocks_ == 1) return z_[y * kRows + r];  // still there
    const int64_t offset = offset_[RowLayout::kInput] + r * row_stride_[RowLayout::kInput] +
                           y * p_.layout.class_stride[RowLayout::kInput];
    return transformed(load_one<acc_t>(p_.input, p_.dtype, offset));
  }

  // Where block b of an operand of one row begins in memory.
  const char* address(RowLayout::Operand operand, const void* tensor, int64_t b) const {
    const int64_t offset = offset_[operand] + b * kBlock * p_.layout.class_stride[operand];
    return static_cast<const char*>(tensor) + offset * c10::elementSize(p_.dtype);
  }

  // What the arithmetic on block b fetches: the block after it, and its gradient's place if given.
  Soon soon(int64_t b, const void* gradient) const {
    const bool contiguous = p_.layout.class_stride[RowLayout::kGradient] == 1;
    return {
        address(RowLayout::kInput, p_.input, b + 1),
        gradient != nullptr && contiguous ? address(RowLayout::kGradient, gradient, b) : nullptr,
        static_cast<int64_t>(c10::elementSize(p_.dtype))};
  }

  // Where block b of the gradient begins, if its values can be written there as they are formed.
  acc_t* written_in_place(void* gradient, int64_t b) const {
    const bool can = gradient != nullptr && !columns && plain_logits_ && same_dtype() &&
                     p_.layout.class_stride[RowLayout::kGradient] == 1;
    if (!can) return nullptr;
    return static_cast<acc_t*>(gradient) + offset_[RowLayout::kGradient] + b * kBlock;
  }

  void store_gradient(const acc_t* d, int64_t first, int64_t n, void* gradient) {
    const int64_t class_stride = p_.layout.class_stride[RowLayout::kGradient];
    const int64_t row_stride = row_stride_[RowLayout::kGradient];
    const int64_t offset = offset_[RowLayout::kGradient] + first * class_stride;
    if constexpr (!columns) {
      store_run(gradient, p_.dtype, offset, class_stride, n, d);
    } else if (class_stride == 1 && row_stride != 1) {
      if (same_dtype()) {
        transpose(d, kRows, static_cast<acc_t*>(gradient) + offset, row_stride, n, rows_);
        return;
      }
      transpose(d, kRows, z_.get(), kBlock, n, rows_);
      for (int64_t r = 0; r < rows_; ++r) {
        store_run(gradient, p_.dtype, offset + r * row_stride, 1, n, z_.get() + r * kBlock);
      }
    } else {
      for (int64_t c = 0; c < n; ++c) {
        store_run(gradient, p_.dtype, offset + c * class_stride, row_stride, rows_, d + c * kRows);
      }
    }
  }

  void zero_gradient(void* gradient) {
    std::fill_n(d_.get(), kBlockSize, acc_t(0));
    for (int64_t b = 0; b < blocks_; ++b) {
      store_gradient(d_.get(), b * kBlock, classes_of(b), gradient);
    }
  }

  // A row that does not count has no gradient, even where its logits are NaN.
  void zero_ignored_gradient(void* gradient) {
    if (!columns) return;
    const int64_t stride = p_.layout.class_stride[RowLayout::kGradient];
    bool zeroed = false;
    for (int64_t r = 0; r < rows_; ++r) {
      if (!ignored(r)) continue;
      if (!zeroed) std::fill_n(d_.get(), kBlock, acc_t(0));
      zeroed = true;
      const int64_t offset = offset_[RowLayout::kGradient] + r * row_stride_[RowLayout::kGradient];
      for (int64_t b = 0; b < blocks_; ++b) {
        store_run(gradient, p_.dtype, offset + b * kBlock * stride, stride, classes_of(b),
                  d_.get());
      }
    }
  }

  const CrossEntropyProblem& p_;
  const bool plain_logits_;  // neither scaled nor capped
  const int64_t blocks_;
  Scratch<acc_t> z_, q_, d_;
  int64_t row_ = 0, rows_ = 0;
  int64_t offset_[RowLayout::kOperands] = {}, row_stride_[RowLayout::kOperands] = {};
};

}  // namespace
}  // namespace pyext
