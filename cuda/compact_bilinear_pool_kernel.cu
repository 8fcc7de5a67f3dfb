// compact_bilinear_pool on CUDA: the products by cuBLAS, run by run of samples, and a kernel that
// scatters them.
//
// Sums have the same bits in every run, without atomics and without sorting all pairs of channels:
// within a row of the products, columns of different hashes fall on different results, so that
// threads need not wait for one another, and the columns of one hash are added up by one thread. A
// block has the results in shared memory and takes row by row.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>

#include "compact_bilinear_pool.h"
#include "einsum_launch.cuh"
#include "features.cuh"
#include "matrix_tiles.cuh"

namespace pyext {
namespace {

constexpr int64_t kSharedBytes = 48 << 10;  // that any block may have
constexpr int kBatch = 8;                   // rows that are loaded at once
constexpr int64_t kLeastRows = 64;          // of a block

// A hash that is out of range must not be written with.
__device__ __forceinline__ int64_t wrapped(int64_t hash, int64_t d) {
  if (hash >= 0 && hash < d) return hash;
  const int64_t rest = hash % d;
  return rest < 0 ? rest + d : rest;
}

// Columns in chains of one hash, each but the last with the next. Where a chain begins, `hash` is
// its hash, else -1.
struct Chains {
  int64_t* hash;
  int64_t* next;
};

struct ChainArguments {
  const int64_t* hashes;
  int64_t count, d;
  Chains chains;
};

__global__ void __launch_bounds__(kThreads) chain_kernel(const ChainArguments p) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= p.count) return;
  const int64_t hash = wrapped(p.hashes[column], p.d);
  const auto equal = [&](int64_t other) { return wrapped(p.hashes[other], p.d) == hash; };
  int64_t next = column + 1;
  while (next < p.count && !equal(next)) ++next;
  p.chains.next[column] = next < p.count ? next : -1;
  bool first = true;
  for (int64_t other = 0; other < column; ++other) first = first && !equal(other);
  p.chains.hash[column] = first ? hash : -1;
}

template <typename T>
struct ScatterArguments {
  const T* products;  // (N, rows, cols)
  int64_t rows, cols;
  const int64_t* hash1;
  const T* sign1;
  const T* sign2;
  Chains chains;
  int64_t d;
  T* parts;            // (N, pieces of rows, d)
  int64_t piece_rows;  // of a block
  int64_t range;       // of the results: those of a block
};

// The grid: ranges of results, pieces of rows, samples.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(const __grid_constant__ ScatterArguments<T> p) {
  extern __shared__ __align__(16) unsigned char memory[];
  T* const sums = reinterpret_cast<T*>(memory);
  const int64_t sample = blockIdx.z, piece = blockIdx.y, begin = blockIdx.x * p.range;
  const int64_t count = p.d - begin < p.range ? p.d - begin : p.range;
  const int64_t first = piece * p.piece_rows, end = first + p.piece_rows;
  const int64_t last = end < p.rows ? end : p.rows;
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t k = thread; k < count; k += kThreads) sums[k] = T(0);

  for (int64_t row = first; row < last; row += kBatch) {
    int64_t shift[kBatch];
    T sign[kBatch];
#pragma unroll
    for (int r = 0; r < kBatch; ++r) {
      const int64_t i = row + r < last ? row + r : row;
      shift[r] = wrapped(p.hash1[i], p.d);
      sign[r] = p.sign1[i];
    }
    for (int64_t strip = 0; strip < p.cols; strip += kThreads) {
      const int64_t column = strip + thread;
      const int64_t hash = column < p.cols ? p.chains.hash[column] : -1;
      T values[kBatch] = {};
      for (int64_t j = hash < 0 ? -1 : column; j >= 0; j = p.chains.next[j]) {
        const T* const from = p.products + (sample * p.rows + row) * p.cols + j;
        const T factor = p.sign2[j];
#pragma unroll
        for (int r = 0; r < kBatch; ++r) {
          if (row + r < last) values[r] += factor * from[r * p.cols];
        }
      }
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        __syncthreads();
        int64_t at = hash + shift[r];
        if (at >= p.d) at -= p.d;
        at -= begin;
        if (hash >= 0 && at >= 0 && at < count) sums[at] += sign[r] * values[r];
      }
    }
  }
  __syncthreads();
  T* const to = p.parts + (sample * gridDim.y + piece) * p.d + begin;
  for (int64_t k = thread; k < count; k += kThreads) to[k] = sums[k];
}

Chains make_chains(const at::Tensor& memory, const at::Tensor& hashes, int64_t d) {
  const int64_t count = hashes.size(0);
  int64_t* const data = memory.mutable_data_ptr<int64_t>();
  const Chains chains{data, data + count};
  launch(chain_kernel, (count + kThreads - 1) / kThreads, 1,
         ChainArguments{hashes.const_data_ptr<int64_t>(), count, d, chains});
  return chains;
}

// to[n] = the sum over p of parts[n, p]; (N, pieces, d) and (N, d).
void add_pieces(const at::Tensor& to, const at::Tensor& parts) {
  SumOfProducts problem;
  problem.dims = {{to.size(0), to.stride(0), {parts.stride(0)}},
                  {to.size(1), to.stride(1), {parts.stride(2)}},
                  {parts.size(1), 0, {parts.stride(1)}}};
  problem.in = {read_from(parts)};
  problem.out = {to.mutable_data_ptr(), to.scalar_type()};
  problem.dtype = parts.scalar_type();
  merge_dims(problem.dims);
  cuda_multiply_reduce(problem);
}

template <typename scalar_t>
void forward_in(const at::Tensor& out, const at::Tensor& x, const at::Tensor& y,
                const Sketches& sketches) {
  using T = at::opmath_type<scalar_t>;
  constexpr auto kItem = static_cast<int64_t>(sizeof(T));
  const at::Tensor& other = y.defined() ? y : x;
  const int64_t rows = x.size(1), cols = other.size(1), d = out.size(1);
  // The sums of pieces should not be more than there is to sum.
  const int64_t piece_rows = std::clamp((d + cols - 1) / cols, std::min(kLeastRows, rows), rows);
  const int64_t pieces = (rows + piece_rows - 1) / piece_rows;
  const int64_t most = kSharedBytes / kItem, ranges = (d + most - 1) / most;
  const int64_t range = (d + ranges - 1) / ranges;
  const auto options = x.options().dtype(arithmetic_of(x));
  const at::Tensor memory = at::empty({2, cols}, sketches.hash2.options());
  const Chains chains = make_chains(memory, sketches.hash2, d);

  each_run(x.size(0), (rows * cols + pieces * d) * kItem, [&](int64_t first, int64_t count) {
    const auto part = [&](const at::Tensor& all) { return all.narrow(0, first, count); };
    const at::Tensor products = at::empty({count, rows, cols}, options);
    const at::Tensor parts = at::empty({count, pieces, d}, options);
    multiply(products, part(x), part(other).transpose(1, 2));
    const ScatterArguments<T> arguments{products.const_data_ptr<T>(),
                                        rows,
                                        cols,
                                        sketches.hash1.const_data_ptr<int64_t>(),
                                        sketches.sign1.const_data_ptr<T>(),
                                        sketches.sign2.const_data_ptr<T>(),
                                        chains,
                                        d,
                                        parts.mutable_data_ptr<T>(),
                                        piece_rows,
                                        range};
    const dim3 grid(static_cast<uint32_t>(ranges), static_cast<uint32_t>(pieces),
                    static_cast<uint32_t>(count));
    scatter_kernel<<<grid, kThreads, range * kItem, c10::cuda::getCurrentCUDAStream()>>>(arguments);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    add_pieces(part(out), parts);
  });
}

// dG, the gradient of the products, which is gathered from that of the result.
template <typename scalar_t, typename T = at::opmath_type<scalar_t>>
struct Gathered {
  Entries<const scalar_t> grad;
  const int64_t* hash1;
  const int64_t* hash2;
  const T* sign1;
  const T* sign2;
  int64_t d;

  __device__ T operator()(int64_t n, int64_t i, int64_t j) const {
    int64_t at = wrapped(hash1[i], d) + wrapped(hash2[j], d);
    if (at >= d) at -= d;
    return sign1[i] * sign2[j] * static_cast<T>(grad(n, 0, at));
  }
};

template <typename scalar_t, typename Part, int kParts>
void backward_in(const at::Tensor& grad_x, const at::Tensor& grad_y, const at::Tensor& grad,
                 const at::Tensor& x, const at::Tensor& y, const Sketches& sketches) {
  using T = at::opmath_type<scalar_t>;
  const bool symmetric = !y.defined();
  const at::Tensor& other = symmetric ? x : y;
  const int64_t rows = x.size(1), cols = other.size(1);
  const auto options = x.options().dtype(c10::CppTypeToScalarType<Part>::value);
  const int64_t bytes = rows * cols * kParts * static_cast<int64_t>(sizeof(Part)) +
                        (rows + cols) * x.size(2) * static_cast<int64_t>(sizeof(T));
  each_run(x.size(0), bytes, [&](int64_t first, int64_t count) {
    const auto part = [&](const at::Tensor& all) { return all.narrow(0, first, count); };
    const at::Tensor parts = at::empty({kParts, count, rows, cols}, options);
    const StoreParts<T, Part, kParts> store(parts);
    const Gathered<scalar_t> gathered{
        Entries<const scalar_t>(part(grad)),      sketches.hash1.const_data_ptr<int64_t>(),
        sketches.hash2.const_data_ptr<int64_t>(), sketches.sign1.const_data_ptr<T>(),
        sketches.sign2.const_data_ptr<T>(),       grad.size(1)};
    if (symmetric) {
      const auto same = [] __device__(int64_t, int64_t, int64_t, T sum) { return sum; };
      mirror<T, true>(count, rows, gathered, same, store);
    } else {
      transform<T>(count, {rows, cols}, gathered, store);
    }
    multiply_parts(part(grad_x), parts, part(other));
    if (grad_y.defined()) multiply_parts(part(grad_y), parts.transpose(2, 3), part(x));
  });
}

void forward_kernel(const at::Tensor& out, const at::Tensor& x, const at::Tensor& y,
                    const Sketches& sketches) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(),
                                  "compact_bilinear_pool",
                                  [&] { forward_in<scalar_t>(out, x, y, sketches); });
}

// Between two inputs the matrix consists of values of the gradient and of their opposites, which
// have the dtype already; of one input, of sums of two.
void backward_kernel(const at::Tensor& grad_x, const at::Tensor& grad_y, const at::Tensor& grad,
                     const at::Tensor& x, const at::Tensor& y, const Sketches& sketches) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, x.scalar_type(), "compact_bilinear_pool_backward", [&] {
        constexpr bool kSplits = std::is_same_v<scalar_t, at::BFloat16>;
        using Part = std::conditional_t<kSplits, scalar_t, at::opmath_type<scalar_t>>;
        if (y.defined()) {
          backward_in<scalar_t, scalar_t, 1>(grad_x, grad_y, grad, x, y, sketches);
        } else {
          backward_in<scalar_t, Part, kSplits ? 2 : 1>(grad_x, grad_y, grad, x, y, sketches);
        }
      });
}

const RegisterKernel forward(compact_bilinear_pool_stub, at::kCUDA, &forward_kernel);
const RegisterKernel backward(compact_bilinear_pool_backward_stub, at::kCUDA, &backward_kernel);

}  // namespace
}  // namespace pyext
