// How rows and their classes are laid over threads, and how a thread reads and writes them.
//
// The threads of a group share one row. Their classes are interleaved, so that neighbouring threads
// touch neighbouring memory: 16 bytes each where the classes are contiguous (`kWidth` classes), one
// class each otherwise. Where the class axis is strided, neighbouring threads hold neighbouring
// rows instead (`columns`).
#pragma once

#include <ATen/OpMathType.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cross_entropy_problem.h"

namespace pyext {
namespace {

constexpr int kVectorBytes = 16;
constexpr int kWarp = 32;
constexpr int kBlock = 256;  // threads, unless there are few rows, all of them long
// Limits registers to 64, so that 1024 threads are resident on a multiprocessor; double needs more.
template <typename scalar_t>
constexpr int kMaxBlock = sizeof(scalar_t) == 8 ? 512 : 1024;
constexpr int64_t kFull = 1 << 17;  // threads that fill a large GPU

// How many loads of kWidth classes a thread has in flight. 64 bytes by 1024 threads cover the
// latency of an H200's memory (4.3 TB/s by about 0.8 us is 26 KB on each of 132 processors).
template <typename scalar_t, int kWidth, bool kPlain>
constexpr int kLoadsOf = sizeof(scalar_t) == 8   ? 2
                         : kWidth > 1 || !kPlain ? 4
                                                 : 32 / static_cast<int>(sizeof(scalar_t));

struct Shape {
  int group;           // threads that share a row
  int rows_per_block;  // both are powers of two
  bool columns;
  int64_t blocks;

  Shape(int64_t rows, int group_, bool columns_)
      : group(group_),
        rows_per_block(std::max(kBlock / group_, 1)),
        columns(columns_),
        blocks((rows + rows_per_block - 1) / rows_per_block) {}

  int threads() const { return group * rows_per_block; }
  __device__ int64_t first_row(int64_t block) const { return block * rows_per_block; }
};

// Each thread gets `per_thread` classes or fewer, down to one `batch` of them where rows are few.
inline Shape shape_of_rows(int64_t rows, int64_t classes, int most, int least, int64_t per_thread,
                           int64_t batch) {
  int group = least;
  while (group < kBlock && group * per_thread < classes) group *= 2;
  while (group < most && group * batch < classes && rows * group < kFull) group *= 2;
  return {rows, group, /*columns=*/false};
}

// A warp is 32 neighbouring rows; where these are few, warps share their classes.
inline Shape shape_of_columns(int64_t rows, int64_t classes, int64_t batch) {
  int group = 1;
  while (group < kBlock / kWarp && group * batch < classes && rows * group < kFull) group *= 2;
  return {rows, group, /*columns=*/true};
}

// Where a thread stands.
struct Place {
  int slot;  // of its row in the block
  int rank;  // of the thread among those that share the row
  int64_t row;
  bool inside;  // a thread beyond the last row walks that one, for the barriers, and writes nothing

  __device__ Place(const Shape& shape, int64_t rows, int64_t block) {
    const int thread = static_cast<int>(threadIdx.x);
    const int run = shape.columns ? shape.rows_per_block : shape.group;
    const int within = thread & (run - 1), which = thread >> __popc(run - 1);
    slot = shape.columns ? within : which;
    rank = shape.columns ? which : within;
    row = shape.first_row(block) + slot;
    inside = row < rows;
    if (!inside) row = rows - 1;
  }
};

// A NaN need not survive here: the sum of exponentials finds it.
__device__ __forceinline__ float larger(float a, float b) { return ::fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return ::fmax(a, b); }

// Neighbouring values of a row, to load or to store at once.
template <typename scalar_t, int kWidth>
struct alignas(sizeof(scalar_t) * kWidth) Vector {
  scalar_t values[kWidth];

  __device__ at::opmath_type<scalar_t> operator[](int v) const { return values[v]; }
  __device__ at::opmath_type<scalar_t> largest() const {
    at::opmath_type<scalar_t> result = values[0];
#pragma unroll
    for (int v = 1; v < kWidth; ++v) {
      result = larger(result, static_cast<at::opmath_type<scalar_t>>(values[v]));
    }
    return result;
  }
};

// Eight values of 16 bits to load. As words, since the compiler gives each member of an array a
// register; the largest is found two at a time.
template <typename scalar_t>
struct alignas(kVectorBytes) PackedVector {
  using pair_t = std::conditional_t<std::is_same_v<scalar_t, at::Half>, __half2, __nv_bfloat162>;
  uint32_t words[4];

  __device__ pair_t pair(int i) const { return reinterpret_cast<const pair_t&>(words[i]); }
  __device__ float operator[](int v) const {
    return v % 2 == 0 ? __low2float(pair(v / 2)) : __high2float(pair(v / 2));
  }
  __device__ float largest() const {
    const pair_t result = __hmax2(__hmax2(pair(0), pair(1)), __hmax2(pair(2), pair(3)));
    return larger(__low2float(result), __high2float(result));
  }
};

// Logits in the registers of one thread, as they lie in memory: up to kLoads vectors, `step`
// classes apart.
template <typename scalar_t, int kLoads, int kWidth>
struct Batch {
  int64_t first;  // class of x[0].values[0]
  int step;
  int end;  // of the classes, counted from `first`
  using Loaded = std::conditional_t<kWidth == 8, PackedVector<scalar_t>, Vector<scalar_t, kWidth>>;
  Loaded x[kLoads];

  __device__ bool has(int u) const { return u * step < end; }
  __device__ int64_t class_of(int u) const { return first + u * step; }
  // Where class c is, counted from `first`; negative if it is not here.
  __device__ int position(int64_t c) const {
    return c >= first && c - first < end ? static_cast<int>(c - first) : -1;
  }
};

// The classes of one row as one thread meets them: a whole number of vectors, and where rows begin
// anywhere in memory, fewer than kWidth classes before and after these.
template <typename scalar_t, int kWidth>
class Classes {
 public:
  using acc_t = at::opmath_type<scalar_t>;

  __device__ Classes(const CrossEntropyProblem& p, const Place& place, int group)
      : logits_(static_cast<const scalar_t*>(p.input) +
                p.layout.offset(RowLayout::kInput, place.row)),
        stride_(p.layout.class_stride[RowLayout::kInput]),
        step_(group * kWidth),
        first_(place.rank * kWidth),
        end_(p.classes) {
    if constexpr (kWidth > 1) {
      const auto past = reinterpret_cast<uintptr_t>(logits_) / sizeof(scalar_t) % kWidth;
      const int head = past == 0 ? 0 : kWidth - static_cast<int>(past);
      first_ += head;
      end_ -= (p.classes - head) % kWidth;
      edge_ = place.rank < head ? place.rank : end_ + place.rank - head;
      has_edge_ = edge_ < p.classes;
    }
  }

  // The first of this thread's vectors, and where they all end.
  __device__ int64_t first() const { return first_; }
  __device__ int64_t end() const { return end_; }

  // The vectors from class c on. All loads are issued before any is waited for.
  template <int kLoads>
  __device__ Batch<scalar_t, kLoads, kWidth> load(int64_t c) const {
    const int64_t left = end_ - c;
    Batch<scalar_t, kLoads, kWidth> batch;
    batch.first = c;
    batch.step = step_;
    batch.end = static_cast<int>(left < kLoads * step_ ? left : kLoads * step_);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      if (batch.has(u)) {
        using Loaded = typename decltype(batch)::Loaded;
        batch.x[u] = *reinterpret_cast<const Loaded*>(at(logits_, stride_, batch.class_of(u)));
      }
    }
    return batch;
  }

  // This thread's class before or after the vectors, at most one: a group has 2 kWidth threads.
  __device__ Batch<scalar_t, 1, 1> load_edge() const {
    Batch<scalar_t, 1, 1> batch;
    batch.first = edge_;
    batch.step = batch.end = has_edge_;
    if (has_edge_) batch.x[0].values[0] = *at(logits_, stride_, edge_);
    return batch;
  }

  __device__ acc_t logit(int64_t c) const { return static_cast<acc_t>(*at(logits_, stride_, c)); }

  template <typename T>
  static __device__ T* at(T* row, int64_t stride, int64_t c) {
    return row + (kWidth > 1 ? c : c * stride);
  }

 private:
  const scalar_t* logits_;
  int64_t stride_;
  int step_;
  int64_t first_, end_;
  int64_t edge_ = 0;
  bool has_edge_ = false;
};

// Values of any floating dtype at the classes of a batch.
template <typename acc_t, typename scalar_t, int kLoads>
__device__ void load_as(acc_t (&values)[kLoads], const void* tensor, at::ScalarType dtype,
                        int64_t offset, int64_t stride, const Batch<scalar_t, kLoads, 1>& batch) {
  const auto load = [&](const auto* from) {
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      values[u] =
          batch.has(u) ? static_cast<acc_t>(from[offset + batch.class_of(u) * stride]) : acc_t(0);
    }
  };
  switch (dtype) {
    case at::kFloat:
      return load(static_cast<const float*>(tensor));
    case at::kDouble:
      return load(static_cast<const double*>(tensor));
    case at::kHalf:
      return load(static_cast<const at::Half*>(tensor));
    default:
      return load(static_cast<const at::BFloat16*>(tensor));
  }
}

}  // namespace
}  // namespace pyext
