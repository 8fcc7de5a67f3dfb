// The few functions that formulas are made of, for scalars (host and device) and for
// at::vec::Vectorized alike, so that one template serves vector bodies, tails and CUDA threads.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#if defined(__CUDACC__)
#define PYEXT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PYEXT_HOST_DEVICE inline
#endif

// CPU_CAPABILITY is defined only where a file is compiled per instruction set (csrc/cpu).
#if defined(CPU_CAPABILITY)
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#endif

namespace pyext {

PYEXT_HOST_DEVICE float absolute(float x) { return ::fabsf(x); }
PYEXT_HOST_DEVICE double absolute(double x) { return ::fabs(x); }
PYEXT_HOST_DEVICE float square_root(float x) { return ::sqrtf(x); }
PYEXT_HOST_DEVICE double square_root(double x) { return ::sqrt(x); }
PYEXT_HOST_DEVICE float exponential(float x) { return ::expf(x); }
PYEXT_HOST_DEVICE double exponential(double x) { return ::exp(x); }
PYEXT_HOST_DEVICE float logarithm(float x) { return ::logf(x); }
PYEXT_HOST_DEVICE double logarithm(double x) { return ::log(x); }
PYEXT_HOST_DEVICE float hyperbolic_tangent(float x) { return ::tanhf(x); }
PYEXT_HOST_DEVICE double hyperbolic_tangent(double x) { return ::tanh(x); }

// a b + c, rounded once where the processor can.
template <typename T>
PYEXT_HOST_DEVICE T multiply_add(const T& a, const T& b, const T& c) {
  return a * b + c;
}

// A NaN stays one in vectors, not in scalars.
PYEXT_HOST_DEVICE float at_least(float x, float least) { return x > least ? x : least; }
PYEXT_HOST_DEVICE float at_most(float x, float most) { return x < most ? x : most; }

// 1 / sqrt(x) to 14 bits or better, of normal numbers above 0.
PYEXT_HOST_DEVICE float about_inverse_root(float x) {
#if defined(__CUDA_ARCH__)
  return ::rsqrtf(x);
#else
  return 1 / ::sqrtf(x);
#endif
}

// 0 for what is below normal numbers: processors stop for each of those.
template <typename T>
PYEXT_HOST_DEVICE T without_denormals(const T& x) {
  return absolute(x) < std::numeric_limits<T>::min() ? T(0) : x;
}

// The larger of two; NaN if either is.
PYEXT_HOST_DEVICE float larger_or_nan(float a, float b) { return a > b || a != a ? a : b; }
PYEXT_HOST_DEVICE double larger_or_nan(double a, double b) { return a > b || a != a ? a : b; }

// a where the condition holds, else b.
template <typename scalar_t>
PYEXT_HOST_DEVICE scalar_t where(bool condition, scalar_t a, scalar_t b) {
  return condition ? a : b;
}

#if defined(CPU_CAPABILITY)

template <typename scalar_t>
inline at::vec::Vectorized<scalar_t> absolute(const at::vec::Vectorized<scalar_t>& x) {
  return x.abs();
}

template <typename scalar_t>
inline at::vec::Vectorized<scalar_t> square_root(const at::vec::Vectorized<scalar_t>& x) {
  return x.sqrt();
}

template <typename scalar_t>
inline at::vec::Vectorized<scalar_t> multiply_add(const at::vec::Vectorized<scalar_t>& a,
                                                  const at::vec::Vectorized<scalar_t>& b,
                                                  const at::vec::Vectorized<scalar_t>& c) {
  return at::vec::fmadd(a, b, c);
}

template <typename scalar_t>
inline at::vec::Vectorized<scalar_t> at_least(const at::vec::Vectorized<scalar_t>& x,
                                              const at::vec::Vectorized<scalar_t>& least) {
  return at::vec::clamp_min(x, least);
}
template <typename scalar_t>
inline at::vec::Vectorized<scalar_t> at_most(const at::vec::Vectorized<scalar_t>& x,
                                             const at::vec::Vectorized<scalar_t>& most) {
  return at::vec::clamp_max(x, most);
}

// The condition is a vector of all-ones and all-zeros lanes, as Vectorized comparisons give it.
template <typename scalar_t>
inline at::vec::Vectorized<scalar_t> where(const at::vec::Vectorized<scalar_t>& condition,
                                           const at::vec::Vectorized<scalar_t>& a,
                                           const at::vec::Vectorized<scalar_t>& b) {
  return at::vec::Vectorized<scalar_t>::blendv(b, a, condition);
}

template <typename scalar_t>
inline at::vec::Vectorized<scalar_t> without_denormals(const at::vec::Vectorized<scalar_t>& x) {
  const at::vec::Vectorized<scalar_t> least(std::numeric_limits<scalar_t>::min());
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<scalar_t, float>) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.abs(), least, _CMP_NLT_UQ), x);
  } else {
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(x.abs(), least, _CMP_NLT_UQ), x);
  }
#else
  return where(x.abs() < least, at::vec::Vectorized<scalar_t>(0), x);
#endif
}

inline at::vec::Vectorized<float> about_inverse_root(const at::vec::Vectorized<float>& x) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_rsqrt14_ps(x);
#elif defined(CPU_CAPABILITY_AVX2)
  using Vec = at::vec::Vectorized<float>;
  const Vec about(_mm256_rsqrt_ps(x));  // to 12 bits
  return about * (Vec(1.5f) - Vec(0.5f) * x * about * about);
#else
  return x.rsqrt();
#endif
}

#if !defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
// The plain instruction set cannot; in float64 the product is exact.
inline at::vec::Vectorized<float> multiply_add(const at::vec::Vectorized<float>& a,
                                               const at::vec::Vectorized<float>& b,
                                               const at::vec::Vectorized<float>& c) {
  constexpr int kSize = at::vec::Vectorized<float>::size();
  float x[kSize], y[kSize], z[kSize];
  a.store(x);
  b.store(y);
  c.store(z);
  for (int i = 0; i < kSize; ++i) z[i] = static_cast<float>(double{x[i]} * y[i] + z[i]);
  return at::vec::Vectorized<float>::loadu(z);
}
#endif

template <typename scalar_t>
inline at::vec::Vectorized<scalar_t> larger_or_nan(const at::vec::Vectorized<scalar_t>& a,
                                                   const at::vec::Vectorized<scalar_t>& b) {
  return at::vec::maximum(a, b);
}

#endif

}  // namespace pyext
