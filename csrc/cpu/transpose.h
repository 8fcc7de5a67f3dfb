// Transposes of matrices in cache: 16 x 16 floats at a time in registers with AVX-512.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace pyext {
namespace {

#if defined(CPU_CAPABILITY_AVX512)

// to[c * to_stride + r] = from[r * from_stride + c] for r < rows <= 16, c < cols <= 16. at::vec has
// the same function, but keeps its sixteen registers in memory.
template <bool whole>
void transpose_tile(const float* from, int64_t from_stride, float* to, int64_t to_stride,
                    int64_t rows, int64_t cols) {
  const auto row_mask = static_cast<__mmask16>((1u << rows) - 1);
  const auto col_mask = static_cast<__mmask16>((1u << cols) - 1);
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    a[i] = whole      ? _mm512_loadu_ps(from + i * from_stride)
           : i < rows ? _mm512_maskz_loadu_ps(col_mask, from + i * from_stride)
                      : _mm512_setzero_ps();
  }
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {  // pairs of rows, interleaved
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // a[i + j]: columns j, 4 + j, 8 + j, 12 + j of four rows
    for (int j = 0; j < 2; ++j) {
      const auto low = _mm512_castps_pd(b[i + j]), high = _mm512_castps_pd(b[i + j + 2]);
      a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  const auto put = [&](int64_t col, const __m512& values) {
    if (whole) {
      _mm512_storeu_ps(to + col * to_stride, values);
    } else if (col < cols) {
      _mm512_mask_storeu_ps(to + col * to_stride, row_mask, values);
    }
  };
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // quarters of columns from all sixteen rows
    const __m512 even = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88);
    const __m512 odd = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
    const __m512 even_below = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
    const __m512 odd_below = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
    put(j, _mm512_shuffle_f32x4(even, even_below, 0x88));
    put(j + 4, _mm512_shuffle_f32x4(odd, odd_below, 0x88));
    put(j + 8, _mm512_shuffle_f32x4(even, even_below, 0xdd));
    put(j + 12, _mm512_shuffle_f32x4(odd, odd_below, 0xdd));
  }
}

#endif

// The transpose of a matrix of `rows` rows of `cols` values.
template <typename scalar_t>
void transpose(const scalar_t* from, int64_t from_stride, scalar_t* to, int64_t to_stride,
               int64_t rows, int64_t cols) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<scalar_t, float>) {
    for (int64_t r = 0; r < rows; r += 16) {
      for (int64_t c = 0; c < cols; c += 16) {
        const int64_t r_left = std::min<int64_t>(16, rows - r);
        const int64_t c_left = std::min<int64_t>(16, cols - c);
        const bool whole = r_left == 16 && c_left == 16;
        (whole ? transpose_tile<true> : transpose_tile<false>)(from + r * from_stride + c,
                                                               from_stride, to + c * to_stride + r,
                                                               to_stride, r_left, c_left);
      }
    }
    return;
  }
#endif
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) to[c * to_stride + r] = from[r * from_stride + c];
  }
}

}  // namespace
}  // namespace pyext
