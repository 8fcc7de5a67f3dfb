// The few functions that formulas are made of, for scalars (host and device) and for
// at::vec::Vectorized alike, so that one template serves vector bodies, tails and CUDA threads.
#pragma once

#include <cmath>

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
inline at::vec::Vectorized<scalar_t> hyperbolic_tangent(const at::vec::Vectorized<scalar_t>& x) {
  return x.tanh();
}

// The condition is a vector of all-ones and all-zeros lanes, as Vectorized comparisons give it.
template <typename scalar_t>
inline at::vec::Vectorized<scalar_t> where(const at::vec::Vectorized<scalar_t>& condition,
                                           const at::vec::Vectorized<scalar_t>& a,
                                           const at::vec::Vectorized<scalar_t>& b) {
  return at::vec::Vectorized<scalar_t>::blendv(b, a, condition);
}

#endif

}  // namespace pyext
