// Matrix products of an einsum by torch's own, which is BLAS.
#include "einsum_matmul.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>

// Where torch is built with MKL, its library has this.
extern "C" int MKL_Set_Num_Threads_Local(int threads) __attribute__((weak));

namespace pyext {
namespace {

struct Range {
  int64_t begin, size;
};

// Stretch `i` of `count` into which an index is cut, at multiples of `step`.
Range stretch(int64_t size, int64_t count, int64_t i, int64_t step) {
  const int64_t length = ((size + count - 1) / count + step - 1) / step * step;
  const int64_t begin = std::min(i * length, size);
  return {begin, std::min(length, size - begin)};
}

// Products of matrices as they lie, in tasks: blocks of large ones, groups of small ones. Each task
// is done on one thread, and what they are does not depend on how many threads there are.
class Tasks {
 public:
  explicit Tasks(const MatmulViews& views)
      : views_(views), outer_dims_(views.out.sizes.size() - 2) {
    constexpr int64_t kSide = 512;  // of blocks that reach the rate of BLAS
    constexpr double kFlopsOfGroup = 1 << 23;
    const double flops = views.flops_of_one();
    if (views.is_dense && flops <= kFlopsOfGroup) {
      const auto together = static_cast<int64_t>(kFlopsOfGroup / flops);
      const int64_t products = views.out.sizes[--outer_dims_];
      groups_ = std::max((products + together - 1) / together, std::min<int64_t>(products, 2));
    } else {
      row_blocks_ = (views.m + kSide - 1) / kSide;
      col_blocks_ = (views.n + kSide - 1) / kSide;
      if (views.batch * row_blocks_ * col_blocks_ == 1) {
        (views.m >= views.n ? row_blocks_ : col_blocks_) = 2;
      }
    }
    for (size_t d = 0; d < outer_dims_; ++d) outer_ *= views.out.sizes[d];
  }

  int64_t count() const {
    return outer_ * std::max<int64_t>(groups_, 1) * row_blocks_ * col_blocks_;
  }

  void run(int64_t task, const at::Tensor& a, const at::Tensor& b, const at::Tensor& out) const {
    constexpr int64_t kLanes = 16;
    const Range m = stretch(views_.m, row_blocks_, task % row_blocks_, kLanes);
    task /= row_blocks_;
    const Range n = stretch(views_.n, col_blocks_, task % col_blocks_, kLanes);
    task /= col_blocks_;
    const Range k{0, views_.k};
    Range group{0, 0};
    if (groups_ > 0) {
      group = stretch(views_.out.sizes[outer_dims_], groups_, task % groups_, 1);
      task /= groups_;
      if (group.size == 0) return;
    }
    if (m.size == 0 || n.size == 0) return;
    at::Tensor block = part(out, views_.out, task, group, m, n);
    const at::Tensor left = part(a, views_.a, task, group, m, k);
    const at::Tensor right = part(b, views_.b, task, group, k, n);
    groups_ > 0 ? at::bmm_out(block, left, right) : at::mm_out(block, left, right);
  }

 private:
  // Of matrices: rows and columns of number `outer`, or of a group of those along the last index.
  at::Tensor part(const at::Tensor& x, const TensorLayout& layout, int64_t outer,
                  const Range& group, const Range& rows, const Range& cols) const {
    const size_t dims = layout.sizes.size();
    int64_t offset = x.storage_offset() + rows.begin * layout.strides[dims - 2] +
                     cols.begin * layout.strides[dims - 1];
    for (size_t d = outer_dims_; d-- > 0; outer /= layout.sizes[d]) {
      offset += outer % layout.sizes[d] * layout.strides[d];
    }
    c10::SmallVector<int64_t, 3> sizes{rows.size, cols.size};
    c10::SmallVector<int64_t, 3> strides{layout.strides[dims - 2], layout.strides[dims - 1]};
    if (groups_ > 0) {
      offset += group.begin * layout.strides[outer_dims_];
      sizes.insert(sizes.begin(), group.size);
      strides.insert(strides.begin(), layout.strides[outer_dims_]);
    }
    return x.as_strided(sizes, strides, offset);
  }

  const MatmulViews& views_;
  size_t outer_dims_;  // those of the batch that are looped over
  int64_t outer_ = 1, groups_ = 0, row_blocks_ = 1, col_blocks_ = 1;
};

// While it lives, BLAS takes this thread alone: else it would add in an order that depends on how
// many there are, also where they have work already. MKL and oneDNN each ask for themselves.
class OneThread {
 public:
  OneThread() {
    if (MKL_Set_Num_Threads_Local != nullptr) mkl_ = MKL_Set_Num_Threads_Local(1);
#if defined(_OPENMP)
    omp_ = omp_get_max_threads();
    omp_set_num_threads(1);
#endif
  }
  ~OneThread() {
    if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(mkl_);
#if defined(_OPENMP)
    omp_set_num_threads(omp_);
#endif
  }
  OneThread(const OneThread&) = delete;

 private:
  int mkl_ = 0;
#if defined(_OPENMP)
  int omp_;
#endif
};

void multiply_as_they_lie(const MatmulViews& views, const at::Tensor& a, const at::Tensor& b,
                          const at::Tensor& result) {
  const Tasks tasks(views);
  at::parallel_for(0, tasks.count(), 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;  // other threads have states of their own
    const OneThread one_thread;
    for (int64_t task = begin; task < end; ++task) tasks.run(task, a, b, result);
  });
}

void multiply_copies(const MatmulViews& views, const at::Tensor& a, const at::Tensor& b,
                     const at::Tensor& result) {
  const auto view = [](const at::Tensor& x, const TensorLayout& layout) {
    return x.as_strided(layout.sizes, layout.strides);
  };
  const at::Tensor left = view(a, views.a).reshape({views.batch, views.m, views.k});
  const at::Tensor right = view(b, views.b).reshape({views.batch, views.k, views.n});
  const at::Tensor out = view(result, views.out);
  const bool in_place = out.is_contiguous();
  at::Tensor matrices = in_place ? out.view({views.batch, views.m, views.n})
                                 : at::empty({views.batch, views.m, views.n}, result.options());
  if (result.is_cpu()) {
    MatmulViews copies = views;
    copies.a = layout_of(left);
    copies.b = layout_of(right);
    copies.out = layout_of(matrices);
    copies.is_dense = views.batch > 1;
    multiply_as_they_lie(copies, left, right, matrices);
  } else {
    at::bmm_out(matrices, left, right);
  }
  if (!in_place) out.copy_(matrices.view(views.out.sizes));
}

}  // namespace

void run_matmul(const MatmulViews& views, const at::Tensor& a, const at::Tensor& b,
                const at::Tensor& result) {
  const bool in_tasks = views.as_they_lie && result.is_cpu();
  (in_tasks ? multiply_as_they_lie : multiply_copies)(views, a, b, result);
}

}  // namespace pyext
