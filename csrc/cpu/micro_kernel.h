// The product of two small matrices in cache, its accumulators in registers.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "math.h"

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

namespace pyext {
namespace {

// How many registers of accumulators: as many as leave room for a row of b and one value of a.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kMicroRows = 8, kMicroVectors = 3;
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kMicroRows = 4, kMicroVectors = 3;
#else
constexpr int kMicroRows = 2, kMicroVectors = 1;
#endif

// How a sum is formed: of even chains of no more than `longest` terms, which lose fewer digits than
// one long chain. They are added up apart, and then to what is there or not.
struct Sums {
  int64_t longest;
  bool accumulate;
};

// How a term is added to a sum.
template <typename T>
struct AnyTerms {
  using Vec = at::vec::Vectorized<T>;
  static Vec add(const Vec& a, const Vec& b, const Vec& sum) { return multiply_add(a, b, sum); }
};

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
// Factors of 64 bits that 32 would hold, as integers mostly are: processors multiply those in a
// third of the time.
struct ShortTerms {
  using Vec = at::vec::Vectorized<int64_t>;
  static Vec add(const Vec& a, const Vec& b, const Vec& sum) {
#if defined(CPU_CAPABILITY_AVX512)
    return _mm512_add_epi64(_mm512_mul_epi32(a, b), sum);
#else
    return _mm256_add_epi64(_mm256_mul_epi32(a, b), sum);
#endif
  }
};

inline bool are_short(const int64_t* x, int64_t rows, int64_t row, int64_t cols, int64_t col) {
  uint64_t high = 0;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      high |= (static_cast<uint64_t>(x[i * row + j * col]) + (uint64_t{1} << 31)) >> 32;
    }
  }
  return high == 0;
}
#endif

// c[r][j] = sum over k of a[r][k] * b[k][j]. Columns are whole vectors; rows of b and c are
// contiguous, a lies anyhow.
template <typename T, typename Terms, int rows, int vectors>
void micro_kernel(int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b,
                  int64_t b_row, T* c, int64_t c_row, Sums sums) {
  using Vec = at::vec::Vectorized<T>;
  constexpr int kWidth = Vec::size();
  const int64_t chains = std::max<int64_t>(2, (depth + sums.longest - 1) / sums.longest);
  const int64_t longest = (depth + chains - 1) / chains;
  constexpr int kRow = vectors * kWidth;
  alignas(64) T apart[rows * kRow];
  for (bool first = true;; first = false) {
    const int64_t chain = std::min(depth, longest);
    Vec sum[rows][vectors];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = Vec(T(0));
    }
    for (int64_t k = 0; k < chain; ++k) {
      Vec row[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) row[v] = Vec::loadu(b + v * kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const Vec factor(a[r * a_row]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[r][v] = Terms::add(factor, row[v], sum[r][v]);
      }
      a += a_col;
      b += b_row;
    }
    depth -= chain;
    // Stores total(x, rest, there) for the vectors x of a chain: `rest` is what the chains before
    // come to, `there` where it is stored.
    const auto put = [&](T* to, int64_t to_row, const auto& total) {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
          T* there = to + r * to_row + v * kWidth;
          total(sum[r][v], apart + r * kRow + v * kWidth, there).store(there);
        }
      }
    };
    const auto alone = [](Vec x, const T*, const T*) { return x; };
    const auto with_rest = [](Vec x, const T* rest, const T*) { return Vec::loadu(rest) + x; };
    if (depth > 0 && first) {
      put(apart, kRow, alone);
    } else if (depth > 0) {
      put(apart, kRow, with_rest);
    } else {
      if (first) std::fill_n(apart, rows * kRow, T(0));  // a sum of one term
      if (!sums.accumulate) return put(c, c_row, with_rest);
      return put(c, c_row, [](Vec x, const T* rest, const T* there) {
        return Vec::loadu(there) + (Vec::loadu(rest) + x);
      });
    }
  }
}

// The same for any number of rows up to kMicroRows and vectors up to kMicroVectors.
template <typename T, typename Terms, int rows = kMicroRows, int vectors = kMicroVectors>
void micro_kernel_of(int64_t row_count, int64_t vector_count, int64_t depth, const T* a,
                     int64_t a_row, int64_t a_col, const T* b, int64_t b_row, T* c, int64_t c_row,
                     Sums sums) {
  if constexpr (vectors > 1) {
    if (vector_count < vectors) {
      return micro_kernel_of<T, Terms, rows, vectors - 1>(row_count, vector_count, depth, a, a_row,
                                                          a_col, b, b_row, c, c_row, sums);
    }
  }
  if constexpr (rows > 1) {
    if (row_count < rows) {
      return micro_kernel_of<T, Terms, rows - 1, vectors>(row_count, vector_count, depth, a, a_row,
                                                          a_col, b, b_row, c, c_row, sums);
    }
  }
  micro_kernel<T, Terms, rows, vectors>(depth, a, a_row, a_col, b, b_row, c, c_row, sums);
}

// c = a b for matrices in cache; b and c have whole vectors of columns. A panel of rows of a stays
// in the first cache while b passes by.
template <typename T, typename Terms>
void multiply_block_of(int64_t rows, int64_t cols, int64_t depth, const T* a, int64_t a_row,
                       int64_t a_col, const T* b, int64_t b_row, T* c, int64_t c_row, Sums sums) {
  constexpr int64_t kWidth = at::vec::Vectorized<T>::size();
  const int64_t vectors = (cols + kWidth - 1) / kWidth;
  // Panels of even height: 8 + 8 + 1 rows would be slower than 6 + 6 + 5.
  const int64_t panels = (rows + kMicroRows - 1) / kMicroRows;
  for (int64_t p = 0, r = 0; p < panels; ++p) {
    const int64_t height = (rows - r + panels - p - 1) / (panels - p);
    const int64_t slices = (vectors + kMicroVectors - 1) / kMicroVectors;
    // The rows of the next panel come from afar while this one is multiplied.
    constexpr int64_t kLine = 64 / sizeof(T);
    const int64_t following = a_col == 1 ? std::min(height, rows - r - height) : 0;
    const int64_t ahead = ((depth + slices - 1) / slices + kLine - 1) / kLine * kLine;
    for (int64_t s = 0, v = 0; s < slices; ++s) {
      for (int64_t i = 0; i < following; ++i) {
        const T* row = a + (r + height + i) * a_row;
        const int64_t end = std::min((s + 1) * ahead, depth);
        for (int64_t k = s * ahead; k < end; k += kLine) __builtin_prefetch(row + k);
      }
      const int64_t width = (vectors - v + slices - s - 1) / (slices - s);
      micro_kernel_of<T, Terms>(height, width, depth, a + r * a_row, a_row, a_col, b + v * kWidth,
                                b_row, c + r * c_row + v * kWidth, c_row, sums);
      v += width;
    }
    r += height;
  }
}

template <typename T>
void multiply_block(int64_t rows, int64_t cols, int64_t depth, const T* a, int64_t a_row,
                    int64_t a_col, const T* b, int64_t b_row, T* c, int64_t c_row, Sums sums) {
  auto multiply = multiply_block_of<T, AnyTerms<T>>;
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<T, int64_t>) {
    if (are_short(a, rows, a_row, depth, a_col) && are_short(b, depth, b_row, cols, 1)) {
      multiply = multiply_block_of<T, ShortTerms>;
    }
  }
#endif
  multiply(rows, cols, depth, a, a_row, a_col, b, b_row, c, c_row, sums);
}

}  // namespace
}  // namespace pyext
