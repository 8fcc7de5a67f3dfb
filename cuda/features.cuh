// Features (N, channels, positions) on CUDA and batches of their products, through cuBLAS.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/sub.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "arithmetic.h"
#include "einsum.cuh"
#include "matrix_tiles.cuh"

namespace pyext {
namespace {

// out = alpha a b + beta out, for batches of matrices of any strides. Sums are formed in the
// arithmetic's type, and rounded once.
inline void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
                     double alpha = 1, double beta = 0) {
  SumOfProducts problem;
  problem.dims = {{out.size(0), out.stride(0), {a.stride(0), b.stride(0)}},
                  {out.size(1), out.stride(1), {a.stride(1), 0}},
                  {out.size(2), out.stride(2), {0, b.stride(2)}},
                  {a.size(2), 0, {a.stride(2), b.stride(1)}}};
  problem.in = {read_from(a), read_from(b)};
  problem.out = {out.mutable_data_ptr(), out.scalar_type()};
  problem.dtype = arithmetic_of(out);
  problem.alpha = alpha;
  problem.beta = beta;
  merge_dims(problem.dims);
  cuda_matmul(problem);
}

// The products of the channels of x with themselves, at least those (i, j) with i <= j. cuBLAS has
// no batches of symmetric products: of large ones, by halves, a quarter is left out. On tensor
// cores that is less than what another kernel costs.
inline void multiply_upper(const at::Tensor& out, const at::Tensor& x) {
  constexpr int64_t kLarge = 512, kPanel = 128;
  const at::Tensor turned = x.transpose(1, 2);
  const int64_t channels = x.size(1);
  if (channels < kLarge || c10::isReducedFloatingType(x.scalar_type())) {
    return multiply(out, x, turned);
  }
  const int64_t first = (channels / 2 + kPanel - 1) / kPanel * kPanel, rest = channels - first;
  multiply(out.narrow(1, 0, first), x.narrow(1, 0, first), turned);
  multiply(out.narrow(1, first, rest).narrow(2, first, rest), x.narrow(1, first, rest),
           turned.narrow(2, first, rest));
}

// out[n] = alpha times the sum of the nth entries of a tensor, or of the products of those of two
// of one shape, of any strides.
inline void inner_products(const at::Tensor& out, std::initializer_list<at::Tensor> factors,
                           double alpha = 1) {
  SumOfProducts problem;
  for (int64_t d = 0; d < factors.begin()->dim(); ++d) {
    ProductDim dim{factors.begin()->size(d), d == 0 ? out.stride(0) : 0};
    int f = 0;
    for (const auto& factor : factors) dim.in[f++] = factor.stride(d);
    problem.dims.push_back(dim);
  }
  for (const auto& factor : factors) problem.in.push_back(read_from(factor));
  problem.out = {out.mutable_data_ptr(), out.scalar_type()};
  problem.dtype = arithmetic_of(out);
  problem.alpha = alpha;
  merge_dims(problem.dims);
  cuda_multiply_reduce(problem);
}

// x less its mean over positions, in the arithmetic's type, and once more less what the rounding of
// the mean has left: far from zero that is not small. Ops are called by their out= variants, which
// autocast leaves alone.
inline at::Tensor centred(const at::Tensor& x) {
  const auto options = x.options().dtype(arithmetic_of(x));
  at::Tensor mean = at::empty({x.size(0), x.size(1), 1}, options);
  at::mean_out(mean, x, {2}, /*keepdim=*/true, mean.scalar_type());
  at::Tensor result = at::empty(x.sizes(), options);
  at::sub_out(result, x, mean);
  at::mean_out(mean, result, {2}, /*keepdim=*/true);
  return result.sub_(mean);
}

// Stores matrices as sums of kParts matrices of a type that cuBLAS multiplies features of. Two
// bfloat16 numbers have 16 digits: plenty for a result of 8, and tensor cores multiply both in a
// fraction of the time that float32 takes.
template <typename T, typename Part, int kParts>
struct StoreParts {
  Part* data;
  int64_t distance, sample, row;  // strides, the first between parts

  explicit StoreParts(const at::Tensor& parts)  // (kParts, N, rows, columns)
      : data(parts.mutable_data_ptr<Part>()),
        distance(parts.stride(0)),
        sample(parts.stride(1)),
        row(parts.stride(2)) {}

  __device__ void operator()(int64_t n, int64_t i, int64_t j, T value) const {
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const Part part = static_cast<Part>(value);
      data[p * distance + n * sample + i * row + j] = part;
      value -= static_cast<T>(part);
    }
  }
};

// out = (the sum of the parts) x, rounded once.
inline void multiply_parts(const at::Tensor& out, const at::Tensor& parts, const at::Tensor& x) {
  if (parts.size(0) == 1) return multiply(out, parts.select(0, 0), x);
  const at::Tensor sums = at::empty(out.sizes(), out.options().dtype(arithmetic_of(out)));
  for (int64_t p = 0; p < parts.size(0); ++p) multiply(sums, parts.select(0, p), x, 1, p > 0);
  out.copy_(sums);
}

// Calls f(first, count) for runs of samples whose scratch memory, of so many bytes each, is
// bounded.
template <typename F>
void each_run(int64_t samples, int64_t bytes, const F& f, int64_t most_bytes = kScratchBytes) {
  const int64_t most =
      std::clamp(most_bytes / std::max<int64_t>(bytes, 1), int64_t{1}, kMostGridRows);
  const int64_t runs = (samples + most - 1) / most, length = (samples + runs - 1) / runs;
  for (int64_t first = 0; first < samples; first += length) {
    f(first, std::min(length, samples - first));
  }
}

}  // namespace
}  // namespace pyext
