// bilinear_pool on CUDA: the products by cuBLAS, run by run of samples, and then two passes: the
// squares are summed, and what they are divided by the norm is written. Formulas are in
// bilinear_pool.h and signed_sqrt.h.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>

#include "bilinear_pool.h"
#include "features.cuh"
#include "matrix_tiles.cuh"
#include "packed_triangle.h"
#include "signed_sqrt.h"

namespace pyext {
namespace {

// Y from the sums over positions, and what of it is stored.
template <typename T>
struct Roots {
  T scale, eps;
  bool signed_sqrt, packed;

  __device__ T operator()(T sum, bool diagonal) const {
    const T product = scale * sum;
    const T root = signed_sqrt ? signed_sqrt_value(product, eps) : product;
    return packed && !diagonal ? static_cast<T>(kSqrtTwo) * root : root;
  }
};

// dG, from the gradient of Z. Of a symmetric product dG + dG^T: `grad` is then the sum of those of
// (i, j) and (j, i), but of a packed value, which stands for both, its own.
template <typename scalar_t, typename T = at::opmath_type<scalar_t>>
struct Cotangents {
  Entries<const scalar_t> result;
  const T* norm;
  const T* projection;  // <Z, dZ>; null without l2
  T scale;
  bool signed_sqrt, symmetric, packed;

  __device__ T operator()(int64_t n, int64_t i, int64_t j, T grad) const {
    const T c = norm[n];
    T z = static_cast<T>(result(n, i, j));
    if (projection != nullptr && c > static_cast<T>(kLeastNorm)) {
      grad -= (symmetric && !packed ? 2 : 1) * z * projection[n];
    }
    if (packed && i != j) {
      z *= static_cast<T>(kSqrtHalf);
      grad *= static_cast<T>(kSqrtTwo);
    } else if (packed) {
      grad *= 2;
    }
    grad = scale * (grad / c);
    return signed_sqrt ? signed_sqrt_gradient(grad, z * c) : grad;
  }
};

template <typename scalar_t>
void forward_in(const at::Tensor& out, const at::Tensor& norm, const at::Tensor& x,
                const at::Tensor& y, const BilinearPoolOptions& o) {
  using T = at::opmath_type<scalar_t>;
  const bool symmetric = !y.defined();
  const int64_t rows = x.size(1), cols = symmetric ? rows : y.size(1);
  const bool in_place = std::is_same_v<T, scalar_t> && !o.packed;
  const int64_t values = (in_place ? 0 : rows * cols) + (o.center ? rows + cols : 0) * x.size(2);
  const Tiles tiles{rows, cols, symmetric};
  const Roots<T> roots{static_cast<T>(o.scale), static_cast<T>(o.eps), o.signed_sqrt, o.packed};
  if (!o.l2) norm.fill_(1);

  each_run(x.size(0), values * static_cast<int64_t>(sizeof(T)), [&](int64_t first, int64_t count) {
    const auto factor = [&](const at::Tensor& all) {
      const at::Tensor part = all.narrow(0, first, count);
      return o.center ? centred(part) : part;
    };
    const at::Tensor result = out.narrow(0, first, count);
    const at::Tensor products = in_place ? result : at::empty({count, rows, cols}, norm.options());
    const at::Tensor left = factor(x);
    if (symmetric) {
      multiply_upper(products, left);
    } else {
      multiply(products, left, factor(y).transpose(1, 2));
    }

    const Entries<const T> sums(products);
    T* const norms = norm.mutable_data_ptr<T>() + first;
    if (o.l2) {
      const auto square = [=] __device__(int64_t n, int64_t i, int64_t j) {
        const T value = roots(sums(n, i, j), i == j);
        const bool twice = symmetric && !roots.packed && i != j;
        return twice ? 2 * value * value : value * value;
      };
      sum_entries<T>(count, tiles, square, [=] __device__(int64_t n, T sum) {
        norms[n] = larger_or_nan(square_root(sum), static_cast<T>(kLeastNorm));
      });
    }
    const Entries<scalar_t> to(result, rows);
    const auto load = [=] __device__(int64_t n, int64_t i, int64_t j) { return sums(n, i, j); };
    const auto divided = [=] __device__(int64_t n, int64_t i, int64_t j, T sum) {
      return roots(sum, i == j) / norms[n];
    };
    const auto store = [=] __device__(int64_t n, int64_t i, int64_t j, T value) {
      to(n, i, j) = static_cast<scalar_t>(value);
    };
    if (symmetric && !o.packed) return mirror<T, false>(count, rows, load, divided, store);
    const auto value = [=] __device__(int64_t n, int64_t i, int64_t j) {
      return divided(n, i, j, load(n, i, j));
    };
    transform<T>(count, tiles, value, store);
  });
}

template <typename scalar_t, typename Part, int kParts>
void backward_in(const at::Tensor& grad_x, const at::Tensor& grad_y, const at::Tensor& grad,
                 const at::Tensor& x, const at::Tensor& y, const at::Tensor& result,
                 const at::Tensor& norm, const BilinearPoolOptions& o) {
  using T = at::opmath_type<scalar_t>;
  const bool symmetric = !y.defined();
  const int64_t samples = x.size(0), rows = x.size(1), cols = symmetric ? rows : y.size(1);
  const at::Tensor norms = norm.contiguous();
  const at::Tensor projection = at::empty({samples}, norms.options());
  if (o.l2) inner_products(projection, {result, grad});
  const auto part_dtype = c10::CppTypeToScalarType<Part>::value;
  const int64_t bytes = rows * cols * kParts * static_cast<int64_t>(sizeof(Part)) +
                        (rows + cols) * x.size(2) * static_cast<int64_t>(sizeof(T));

  each_run(samples, bytes, [&](int64_t first, int64_t count) {
    const auto part = [&](const at::Tensor& all) { return all.narrow(0, first, count); };
    const auto factor = [&](const at::Tensor& all) {
      return o.center ? centred(part(all)) : part(all);
    };
    const at::Tensor parts = at::empty({kParts, count, rows, cols}, x.options().dtype(part_dtype));
    const StoreParts<T, Part, kParts> store(parts);
    const Entries<const scalar_t> dz(part(grad), rows);
    const Cotangents<scalar_t> cotangent{Entries<const scalar_t>(part(result), rows),
                                         norms.const_data_ptr<T>() + first,
                                         o.l2 ? projection.const_data_ptr<T>() + first : nullptr,
                                         static_cast<T>(o.scale),
                                         o.signed_sqrt,
                                         symmetric,
                                         o.packed};
    const auto load = [=] __device__(int64_t n, int64_t i, int64_t j) {
      return static_cast<T>(dz(n, i, j));
    };
    if (!symmetric) {
      const auto value = [=] __device__(int64_t n, int64_t i, int64_t j) {
        return cotangent(n, i, j, load(n, i, j));
      };
      transform<T>(count, {rows, cols}, value, store);
    } else if (o.packed) {
      mirror<T, false>(count, rows, load, cotangent, store);
    } else {
      mirror<T, true>(count, rows, load, cotangent, store);
    }
    multiply_parts(part(grad_x), parts, factor(symmetric ? x : y));
    if (grad_y.defined()) multiply_parts(part(grad_y), parts.transpose(2, 3), factor(x));
  });
}

void forward_kernel(const at::Tensor& out, const at::Tensor& norm, const at::Tensor& x,
                    const at::Tensor& y, const BilinearPoolOptions& options) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "bilinear_pool",
                                  [&] { forward_in<scalar_t>(out, norm, x, y, options); });
}

void backward_kernel(const at::Tensor& grad_x, const at::Tensor& grad_y, const at::Tensor& grad,
                     const at::Tensor& x, const at::Tensor& y, const at::Tensor& result,
                     const at::Tensor& norm, const BilinearPoolOptions& options) {
  if (x.scalar_type() == at::kBFloat16 && !options.center) {
    return backward_in<at::BFloat16, at::BFloat16, 2>(grad_x, grad_y, grad, x, y, result, norm,
                                                      options);
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(),
                                  "bilinear_pool_backward", [&] {
                                    backward_in<scalar_t, at::opmath_type<scalar_t>, 1>(
                                        grad_x, grad_y, grad, x, y, result, norm, options);
                                  });
}

const RegisterKernel forward(bilinear_pool_stub, at::kCUDA, &forward_kernel);
const RegisterKernel backward(bilinear_pool_backward_stub, at::kCUDA, &backward_kernel);

}  // namespace
}  // namespace pyext
