// matrix_sqrt_pool on CUDA: Newton-Schulz iterations as batches of products by cuBLAS, run by run
// of samples. matrix_sqrt_pool.h has the formulas.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/baddbmm.h>

#include <utility>

#include "features.cuh"
#include "matrix_sqrt_pool.h"
#include "matrix_tiles.cuh"
#include "packed_triangle.h"

namespace pyext {
namespace {

// A chain of products wants many matrices at once, more than it wants them in cache.
constexpr int64_t kMostBytes = 256ll << 20;

// A batch of matrices and their derivative in some direction. Undefined is what is not wanted.
struct Dual {
  at::Tensor value, slope;
};

// out = alpha a b, and the derivative by the product rule.
void multiply(Dual& out, const Dual& a, const Dual& b, double alpha = 1) {
  if (out.value.defined()) at::baddbmm_out(out.value, out.value, a.value, b.value, 0, alpha);
  if (!out.slope.defined()) return;
  at::baddbmm_out(out.slope, out.slope, a.slope, b.value, 0, alpha);
  at::baddbmm_out(out.slope, out.slope, a.value, b.slope, 1, alpha);
}

// Y after some iterations from A, and its derivative from that of A: then not the value. T is that
// of the first iteration.
Dual iterate(const Dual& a, Dual t, int64_t iterations) {
  const bool derives = a.slope.defined();
  const auto fresh = [&](bool last) {
    const auto matrices = [&] { return at::empty(a.value.sizes(), a.value.options()); };
    return Dual{last && derives ? at::Tensor() : matrices(), derives ? matrices() : at::Tensor()};
  };
  Dual y = fresh(iterations == 1);
  multiply(y, a, t);
  if (iterations == 1) return y;
  Dual z = std::move(t), spare = fresh(false);
  t = fresh(false);
  for (int64_t k = 1; k < iterations; ++k) {
    const bool last = k + 1 == iterations;
    multiply(t, z, y, -0.5);
    t.value.diagonal(0, 1, 2).add_(1.5);
    if (last && derives) spare.value.reset();
    multiply(spare, y, t);
    std::swap(y, spare);
    if (last) break;
    multiply(spare, t, z);
    std::swap(z, spare);
  }
  return y;
}

template <typename T>
__device__ T divisor(T trace) {
  return larger_or_nan(trace, static_cast<T>(kLeastTrace));
}

// Stores A and T = (3 I - A) / 2, or with 0 for `diagonal` the derivatives of both.
template <typename T>
struct StoreStart {
  Entries<T> a, t;
  T diagonal;

  StoreStart(const at::Tensor& a, const at::Tensor& t, double diagonal)
      : a(a), t(t), diagonal(static_cast<T>(diagonal)) {}

  __device__ void operator()(int64_t n, int64_t i, int64_t j, T value) const {
    a(n, i, j) = value;
    t(n, i, j) = (i == j ? diagonal : T(0)) - T(0.5) * value;
  }
};

// A run of samples: A, which is their covariances over the traces, and T of the first iteration.
struct Start {
  at::Tensor features, trace;
  Dual a, t;
};

template <typename T>
Start begin(const at::Tensor& x) {
  const int64_t count = x.size(0), rows = x.size(1);
  const double each = 1.0 / static_cast<double>(x.size(2));
  const at::Tensor features = centred(x), trace = at::empty({count}, features.options());
  const at::Tensor a = at::empty({count, rows, rows}, features.options());
  const at::Tensor t = at::empty({count, rows, rows}, features.options());
  multiply_upper(a, features);
  inner_products(trace, {a.diagonal(0, 1, 2)}, each);
  const Entries<const T> products(a);
  const T* const traces = trace.const_data_ptr<T>();
  const auto scale = static_cast<T>(each);
  const auto raw = [=] __device__(int64_t n, int64_t i, int64_t j) { return products(n, i, j); };
  const auto value = [=] __device__(int64_t n, int64_t, int64_t, T sum) {
    return scale * sum / divisor(traces[n]);
  };
  mirror<T, false>(count, rows, raw, value, StoreStart<T>(a, t, 1.5));
  return {features, trace, {a, {}}, {t, {}}};
}

template <typename scalar_t>
void forward_in(const at::Tensor& out, const at::Tensor& x, int64_t iterations, bool packed) {
  using T = at::opmath_type<scalar_t>;
  const int64_t rows = x.size(1), values = 5 * rows * rows + rows * x.size(2);
  const auto run = [&](int64_t first, int64_t count) {
    const Start start = begin<T>(x.narrow(0, first, count));
    const Dual y = iterate(start.a, start.t, iterations);
    const Entries<const T> roots(y.value);
    const Entries<scalar_t> to(out.narrow(0, first, count), rows);
    const T* const traces = start.trace.template const_data_ptr<T>();
    const auto raw = [=] __device__(int64_t n, int64_t i, int64_t j) { return roots(n, i, j); };
    const auto value = [=] __device__(int64_t n, int64_t i, int64_t j, T root) {
      const T twice = packed && i != j ? static_cast<T>(kSqrtTwo) : T(1);
      return square_root(divisor(traces[n])) * twice * root;
    };
    const auto store = [=] __device__(int64_t n, int64_t i, int64_t j, T v) {
      to(n, i, j) = static_cast<scalar_t>(v);
    };
    if (!packed) return mirror<T, false>(count, rows, raw, value, store);
    const auto entry = [=] __device__(int64_t n, int64_t i, int64_t j) {
      return value(n, i, j, raw(n, i, j));
    };
    transform<T>(count, {rows, rows, true}, entry, store);
  };
  each_run(x.size(0), values * static_cast<int64_t>(sizeof(T)), run, kMostBytes);
}

template <typename scalar_t>
void backward_in(const at::Tensor& grad_x, const at::Tensor& grad, const at::Tensor& x,
                 const at::Tensor& result, int64_t iterations, bool packed) {
  using T = at::opmath_type<scalar_t>;
  const int64_t rows = x.size(1), values = 10 * rows * rows + rows * x.size(2);
  const double each = 1.0 / static_cast<double>(x.size(2));
  const auto run = [&](int64_t first, int64_t count) {
    const auto part = [&](const at::Tensor& all) { return all.narrow(0, first, count); };
    Start start = begin<T>(part(x));
    const auto like = [](const at::Tensor& x) { return at::empty(x.sizes(), x.options()); };
    start.a.slope = like(start.a.value);
    start.t.slope = like(start.a.value);
    // E, the gradient of Y: the symmetric matrix whose inner product with it is that of the
    // gradient with the result.
    const Entries<const scalar_t> grads(part(grad), rows);
    const T* const traces = start.trace.template const_data_ptr<T>();
    const auto raw = [=] __device__(int64_t n, int64_t i, int64_t j) {
      return static_cast<T>(grads(n, i, j));
    };
    const auto direction = [=] __device__(int64_t n, int64_t i, int64_t j, T sum) {
      const T share = !packed ? T(0.5) : i == j ? T(1) : static_cast<T>(kSqrtTwo / 2);
      return square_root(divisor(traces[n])) * share * sum;
    };
    const StoreStart<T> store(start.a.slope, start.t.slope, 0);
    if (packed) {
      mirror<T, false>(count, rows, raw, direction, store);
    } else {
      mirror<T, true>(count, rows, raw, direction, store);
    }
    const at::Tensor da = iterate(start.a, std::move(start.t), iterations).slope;

    // The gradient of C, in place of that of A.
    const at::Tensor along_result = like(start.trace), along_a = like(start.trace);
    inner_products(along_result, {part(grad), part(result)});
    inner_products(along_a, {da, start.a.value});
    const T* const of_result = along_result.template const_data_ptr<T>();
    const T* const of_a = along_a.template const_data_ptr<T>();
    const Entries<T> matrices(da);
    const auto value = [=] __device__(int64_t n, int64_t i, int64_t j) {
      const T trace = traces[n], tr = divisor(trace);
      const bool counts = i == j && !(trace < static_cast<T>(kLeastTrace));
      return (matrices(n, i, j) + (counts ? of_result[n] / 2 - of_a[n] : T(0))) / tr;
    };
    const auto replace = [=] __device__(int64_t n, int64_t i, int64_t j, T v) {
      matrices(n, i, j) = v;
    };
    transform<T>(count, {rows, rows}, value, replace);
    multiply(part(grad_x), da, start.features, 2 * each);
  };
  each_run(x.size(0), values * static_cast<int64_t>(sizeof(T)), run, kMostBytes);
}

void forward_kernel(const at::Tensor& out, const at::Tensor& x, int64_t iterations, bool packed) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "matrix_sqrt_pool",
                                  [&] { forward_in<scalar_t>(out, x, iterations, packed); });
}

void backward_kernel(const at::Tensor& grad_x, const at::Tensor& grad, const at::Tensor& x,
                     const at::Tensor& result, int64_t iterations, bool packed) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, x.scalar_type(), "matrix_sqrt_pool_backward",
      [&] { backward_in<scalar_t>(grad_x, grad, x, result, iterations, packed); });
}

const RegisterKernel forward(matrix_sqrt_pool_stub, at::kCUDA, &forward_kernel);
const RegisterKernel backward(matrix_sqrt_pool_backward_stub, at::kCUDA, &backward_kernel);

}  // namespace
}  // namespace pyext
