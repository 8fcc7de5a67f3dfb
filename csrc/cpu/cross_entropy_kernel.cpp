// Cross-entropy on the CPU: rows are cut into tiles, each tile is walked in blocks that stay in
// cache. A tile is one row whose classes are contiguous (or gathered), or up to 64 neighbouring
// rows walked class by class, a vector of rows at a time: for a strided class axis and few classes.
// Tiles are independent, so the result has the same bits on any number of threads.
#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/cross_entropy_tile.h"
#include "cross_entropy_problem.h"

namespace pyext {
namespace {

constexpr int64_t kFewClasses = 112;  // fewer do not fill vectors along a row
constexpr int64_t kElementsPerTask = 1 << 15;

// Calls f(tile, first row, rows) for every tile. Tiles never cross the end of the innermost axis.
template <typename acc_t, bool columns, typename F>
void for_each_tile(const CrossEntropyProblem& p, bool forward_makes_gradient, const F& f) {
  const int64_t inner = columns ? p.layout.sizes[p.layout.dims - 1] : 1;
  const int64_t per_run = columns ? (inner + kTileRows - 1) / kTileRows : 1;
  const int64_t tiles = p.rows / inner * per_run;
  const int64_t elements = p.classes * (columns ? std::min(inner, kTileRows) : 1);
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / elements);
  at::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    Tile<acc_t, columns> tile(p, forward_makes_gradient);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % per_run * kTileRows;
      if (columns) {
        f(tile, i / per_run * inner + first, std::min(kTileRows, inner - first));
      } else {
        f(tile, i, int64_t{1});
      }
    }
  });
}

bool walks_columns(const CrossEntropyProblem& p) {
  const auto& layout = p.layout;
  if (layout.dims == 0 || layout.sizes[layout.dims - 1] < 8) return false;
  const int64_t class_stride = layout.class_stride[RowLayout::kInput];
  const int64_t row_stride = layout.strides[RowLayout::kInput][layout.dims - 1];
  return p.classes <= kFewClasses || (class_stride != 1 && row_stride == 1);
}

template <typename F>
void run(const CrossEntropyProblem& p, bool forward_makes_gradient, const F& f) {
  const bool columns = walks_columns(p);
  if (p.dtype == at::kDouble) {
    columns ? for_each_tile<double, true>(p, forward_makes_gradient, f)
            : for_each_tile<double, false>(p, forward_makes_gradient, f);
  } else {
    columns ? for_each_tile<float, true>(p, forward_makes_gradient, f)
            : for_each_tile<float, false>(p, forward_makes_gradient, f);
  }
}

void cross_entropy_kernel(const CrossEntropyProblem& p, const CrossEntropyResults& out) {
  run(p, out.gradient != nullptr,
      [&](auto& tile, int64_t row, int64_t rows) { tile.forward(row, rows, out); });
}

void cross_entropy_backward_kernel(const CrossEntropyProblem& p, const CrossEntropyCotangents& in,
                                   void* gradient) {
  run(p, false,
      [&](auto& tile, int64_t row, int64_t rows) { tile.backward(row, rows, in, gradient); });
}

const RegisterKernel forward(cross_entropy_stub, at::kCPU, &cross_entropy_kernel);
const RegisterKernel backward(cross_entropy_backward_stub, at::kCPU,
                              &cross_entropy_backward_kernel);

}  // namespace
}  // namespace pyext
