// Transposes of matrices in cache: 16 x 16 floats at a time in registers with AVX-512.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>

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

// Where the values of each column lie in sixteen rows of `cols` values that follow each other: the
// place within a pair of vectors, and which lanes come from which pair.
template <int cols>
struct ColumnsOfRows {
  static constexpr int kPairs = (cols + 1) / 2;
  alignas(64) std::array<std::array<int32_t, 16>, cols> index{};
  std::array<std::array<uint16_t, kPairs>, cols> lanes{};

  constexpr ColumnsOfRows() {
    for (int c = 0; c < cols; ++c) {
      for (int row = 0; row < 16; ++row) {
        const int place = row * cols + c;
        index[c][row] = place % 32;
        lanes[c][place / 32] |= 1u << row;
      }
    }
  }
};

// The same for rows of few values that follow each other, of which there are a multiple of 16:
// whole vectors are read and no lane is idle.
template <int cols>
void transpose_short_rows(const float* from, float* to, int64_t to_stride, int64_t rows) {
  static constexpr ColumnsOfRows<cols> kColumns;
  for (int64_t r = 0; r < rows; r += 16, from += 16 * cols) {
    __m512 x[2 * kColumns.kPairs];
#pragma GCC unroll 8
    for (int i = 0; i < cols; ++i) x[i] = _mm512_loadu_ps(from + 16 * i);
    if (cols % 2 == 1) x[cols] = x[cols - 1];
#pragma GCC unroll 8
    for (int c = 0; c < cols; ++c) {
      const __m512i index = _mm512_load_si512(kColumns.index[c].data());
      __m512 column = _mm512_permutex2var_ps(x[0], index, x[1]);
#pragma GCC unroll 4
      for (int p = 1; p < kColumns.kPairs; ++p) {
        const __m512 values = _mm512_permutex2var_ps(x[2 * p], index, x[2 * p + 1]);
        column = _mm512_mask_mov_ps(column, kColumns.lanes[c][p], values);
      }
      _mm512_storeu_ps(to + c * to_stride + r, column);
    }
  }
}

// The same where that is faster; how many rows it took.
inline int64_t transpose_short_rows(const float* from, int64_t from_stride, float* to,
                                    int64_t to_stride, int64_t rows, int64_t cols) {
  rows = rows / 16 * 16;
  const auto done = [&]<int... kCols>(std::integer_sequence<int, kCols...>) {
    return ((cols == kCols && (transpose_short_rows<kCols>(from, to, to_stride, rows), true)) ||
            ...);
  };
  return from_stride == cols && done(std::integer_sequence<int, 2, 3, 4, 5, 6, 7>{}) ? rows : 0;
}

#endif

// The transpose of a matrix of `rows` rows of `cols` values.
template <typename scalar_t>
void transpose(const scalar_t* from, int64_t from_stride, scalar_t* to, int64_t to_stride,
               int64_t rows, int64_t cols) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<scalar_t, float>) {
    int64_t r = transpose_short_rows(from, from_stride, to, to_stride, rows, cols);
    for (; r < rows; r += 16) {
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
