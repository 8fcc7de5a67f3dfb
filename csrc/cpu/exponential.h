// exp for vectors, inline: 12 to 14 instructions where a call into SLEEF takes 30 and spills the
// registers around it. float: error of 1.06 ulp at most, 0 below exp(-87.3), where results would be
// denormal and a processor stops for each; NaN for NaN. double: SLEEF's.
//
// Method: x = n ln 2 + r, with ln 2 in two parts (Cody and Waite 1980). With AVX-512, n is a whole
// number of sixteenths, 2^n a power of 2 times one of sixteen numbers that one register holds
// (after Tang 1989), and exp(r) a polynomial of degree 3. Else n is a whole number, and exp(r) the
// polynomial of Cephes' expf.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include "math.h"

namespace pyext {

// Internal linkage by `static`: in an anonymous namespace these would hide the scalar overloads.
using FloatVec = at::vec::Vectorized<float>;

// For arguments up to about 88; those in this library are never above 40.
#if defined(CPU_CAPABILITY_AVX512)
static inline FloatVec exponential(const FloatVec& x) {
  using at::vec::fmadd;
  // 2^(i / 16), rounded.
  const __m512 roots =
      _mm512_setr_ps(1.0f, 1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f,
                     1.29683959f, 1.35425556f, 1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f,
                     1.68179286f, 1.75625217f, 1.8340081f, 1.91520655f);
  // 1.5 2^19: of a sum with it the last bit is a sixteenth, the last four say which root.
  const FloatVec least(-87.3f), shift(786432.0f);
  const FloatVec sum = fmadd(x, FloatVec(1.44269504f), shift), n = sum - shift;
  FloatVec r = fmadd(n, FloatVec(-0.693359375f), x);
  r = fmadd(n, FloatVec(2.12194440e-4f), r);
  const FloatVec root = _mm512_permutexvar_ps(_mm512_castps_si512(sum), roots);
  const FloatVec grows = fmadd(fmadd(r, FloatVec(1.66666667e-1f), FloatVec(0.5f)), r * r, r);
  // Times 2 to the whole part of n.
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), fmadd(root, grows, root),
                                n);
}
#else
static inline FloatVec exponential(const FloatVec& x) {
  using at::vec::fmadd;
  const FloatVec least(-87.3f), shift(12582912.0f);  // 1.5 2^23: sums with it have no fraction
  const FloatVec n = fmadd(x, FloatVec(1.44269504f), shift) - shift;
  FloatVec r = fmadd(n, FloatVec(-0.693359375f), x);
  r = fmadd(n, FloatVec(2.12194440e-4f), r);
  // By pairs (Estrin): a chain of 5 where Horner's has 8, so more vectors are under way at a time.
  const FloatVec r2 = r * r;
  const FloatVec high = fmadd(r, FloatVec(1.9875691500e-4f), FloatVec(1.3981999507e-3f));
  const FloatVec middle = fmadd(r, FloatVec(8.3334519073e-3f), FloatVec(4.1665795894e-2f));
  const FloatVec low = fmadd(r, FloatVec(1.6666665459e-1f), FloatVec(5.0000001201e-1f));
  const FloatVec tail = fmadd(fmadd(high, r2, middle), r2, low);
  const FloatVec p = fmadd(tail, r2, r) + FloatVec(1.0f);
  // 2^n by its exponent bits.
  const auto exponent = at::vec::convert_to_int_of_same_size(n) << at::vec::Vectorized<int>(23);
  const FloatVec scaled = at::vec::cast<float>(at::vec::cast<int>(p) + exponent);
  return FloatVec::blendv(scaled, FloatVec(0.0f), x < least);
}
#endif

static inline at::vec::Vectorized<double> exponential(const at::vec::Vectorized<double>& x) {
  return x.exp();
}

template <typename scalar_t>
static inline at::vec::Vectorized<scalar_t> logarithm(const at::vec::Vectorized<scalar_t>& x) {
  return x.log();
}

}  // namespace pyext
