// The product of two small matrices in cache, its accumulators in registers.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>

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
constexpr int kMicroRows = 4, kMicroVectors = 1;
#endif

// The factors of a product: rows of b are contiguous, a lies anyhow.
template <typename T>
struct Operands {
  const T* a;
  int64_t a_row, a_col;
  const T* b;
  int64_t b_row;
};

// Where it goes, whose rows are contiguous: on top of what is there, or not.
template <typename T>
struct Product {
  T* c;
  int64_t c_row;
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

// Calls put(r, v, sum of row r and vector v) for one chain of terms, the sums over k of
// a[r][k] * b[k][j].
template <typename T, typename Terms, int rows, int vectors, typename Put>
[[gnu::always_inline]] inline void sum_chain(int64_t depth, const T* a, int64_t a_row,
                                             int64_t a_col, const T* b, int64_t b_row,
                                             const Put& put) {
  using Vec = at::vec::Vectorized<T>;
  Vec sum[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[r][v] = Vec(T(0));
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec row[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) row[v] = Vec::loadu(b + v * Vec::size());
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec factor(a[r * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = Terms::add(factor, row[v], sum[r][v]);
    }
    a += a_col;
    b += b_row;
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) put(r, v, sum[r][v]);
  }
}

// A tile of the product, whose columns are whole vectors. Its sums are formed of chains of no more
// than `chain` terms, which lose fewer digits than one long chain; they are added up apart.
template <typename T, typename Terms, int rows, int vectors>
void micro_kernel(int64_t depth, int64_t chain, const Operands<T>& x, const Product<T>& result) {
  using Vec = at::vec::Vectorized<T>;
  constexpr int kWidth = Vec::size(), kRow = vectors * kWidth;
  const T *a = x.a, *b = x.b;
  const int64_t a_row = x.a_row, a_col = x.a_col, b_row = x.b_row;
  const auto sum_next = [&](int64_t terms, const auto& put) __attribute__((always_inline)) {
    sum_chain<T, Terms, rows, vectors>(terms, a, a_row, a_col, b, b_row, put);
    a += terms * a_col;
    b += terms * b_row;
  };
  const auto put_to = [](T* to, int64_t to_row, bool adds) {
    return [=](int r, int v, const Vec& sum) {
      T* const there = to + r * to_row + v * kWidth;
      (adds ? Vec::loadu(there) + sum : sum).store(there);
    };
  };
  const auto put_result = put_to(result.c, result.c_row, result.accumulate);
  if (depth <= chain) return sum_next(depth, put_result);
  alignas(64) T rest[rows * kRow];
  for (bool first = true; depth > chain; depth -= chain, first = false) {
    sum_next(chain, put_to(rest, kRow, !first));
  }
  sum_next(depth, [&](int r, int v, const Vec& sum) {
    put_result(r, v, Vec::loadu(rest + r * kRow + v * kWidth) + sum);
  });
}

template <typename T>
using MicroKernel = void (*)(int64_t, int64_t, const Operands<T>&, const Product<T>&);

// That of so many rows, up to kMicroRows, and vectors, up to kMicroVectors.
template <typename T, typename Terms>
MicroKernel<T> micro_kernel_of(int64_t rows, int64_t vectors) {
  static constexpr auto kernels = []<int... i>(std::integer_sequence<int, i...>) {
    return std::array<MicroKernel<T>, sizeof...(i)>{
        &micro_kernel<T, Terms, i / kMicroVectors + 1, i % kMicroVectors + 1>...};
  }(std::make_integer_sequence<int, kMicroRows * kMicroVectors>{});
  return kernels[(rows - 1) * kMicroVectors + vectors - 1];
}

constexpr int64_t kShortChain = 16;  // terms: not worth two

// The product of matrices in cache, whose columns are whole vectors. A panel of rows of a stays in
// the first cache while b passes by.
template <typename T, typename Terms>
void multiply_block_of(int64_t rows, int64_t cols, int64_t depth, const Operands<T>& x,
                       const Product<T>& result, int64_t longest_chain) {
  constexpr int64_t kWidth = at::vec::Vectorized<T>::size();
  const int64_t vectors = (cols + kWidth - 1) / kWidth;
  const int64_t fewest = depth > kShortChain ? 2 : 1;
  const int64_t chains = std::max(fewest, (depth + longest_chain - 1) / longest_chain);
  const int64_t chain = (depth + chains - 1) / chains;  // all of one length
  // Panels of even height: 8 + 8 + 1 rows would be slower than 6 + 6 + 5.
  const int64_t panels = (rows + kMicroRows - 1) / kMicroRows;
  for (int64_t p = 0, r = 0; p < panels; ++p) {
    const int64_t height = (rows - r + panels - p - 1) / (panels - p);
    const int64_t slices = (vectors + kMicroVectors - 1) / kMicroVectors;
    // The rows of the next panel come from afar while this one is multiplied.
    constexpr int64_t kLine = 64 / sizeof(T);
    const int64_t following = x.a_col == 1 ? std::min(height, rows - r - height) : 0;
    const int64_t ahead = ((depth + slices - 1) / slices + kLine - 1) / kLine * kLine;
    for (int64_t s = 0, v = 0; s < slices; ++s) {
      for (int64_t i = 0; i < following; ++i) {
        const T* row = x.a + (r + height + i) * x.a_row;
        const int64_t end = std::min((s + 1) * ahead, depth);
        for (int64_t k = s * ahead; k < end; k += kLine) __builtin_prefetch(row + k);
      }
      const int64_t width = (vectors - v + slices - s - 1) / (slices - s);
      micro_kernel_of<T, Terms>(height, width)(
          depth, chain, {x.a + r * x.a_row, x.a_row, x.a_col, x.b + v * kWidth, x.b_row},
          {result.c + r * result.c_row + v * kWidth, result.c_row, result.accumulate});
      v += width;
    }
    r += height;
  }
}

template <typename T>
void multiply_block(int64_t rows, int64_t cols, int64_t depth, const Operands<T>& x,
                    const Product<T>& result, int64_t longest_chain) {
  auto multiply = multiply_block_of<T, AnyTerms<T>>;
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<T, int64_t>) {
    if (are_short(x.a, rows, x.a_row, depth, x.a_col) && are_short(x.b, depth, x.b_row, cols, 1)) {
      multiply = multiply_block_of<T, ShortTerms>;
    }
  }
#endif
  multiply(rows, cols, depth, x, result, longest_chain);
}

}  // namespace
}  // namespace pyext
