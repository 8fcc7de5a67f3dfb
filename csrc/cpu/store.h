// Ways to store a stream of vectors.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <cstring>

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

namespace pyext {
namespace {

enum class Store {
  kInCache,
  // The lines that are written next are fetched ahead, as the hardware does for what is read: on a
  // virtual Xeon a stream of stores alone takes twice as long.
  kFetched,
  // Lines are written whole and not read first; from aligned places on. For results too large to
  // be found in a cache when they are read: takes 0.6 of the time of kFetched.
  kPastCaches,
};

constexpr int64_t kFetchAhead = 2048, kTooLargeForCaches = int64_t{32} << 20;  // bytes

// How many elements come before the next aligned place.
template <typename T>
int64_t until_aligned(const T* to) {
  constexpr uintptr_t kBytes = sizeof(at::vec::Vectorized<T>);
  const uintptr_t past = reinterpret_cast<uintptr_t>(to) % kBytes;
  return static_cast<int64_t>((kBytes - past) % kBytes / sizeof(T));
}

template <Store way, typename T>
void put(T* to, const at::vec::Vectorized<T>& value) {
  if constexpr (way == Store::kPastCaches) {
#if defined(CPU_CAPABILITY_AVX512)
    __m512i bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits);
#elif defined(CPU_CAPABILITY_AVX2)
    __m256i bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits);
#endif
  }
  if constexpr (way == Store::kFetched) {
    __builtin_prefetch(reinterpret_cast<const char*>(to) + kFetchAhead, /*write=*/1);
  }
  value.store(to);
}

// Before other threads may read what this one has stored.
template <Store way>
void finish_stores() {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  if constexpr (way == Store::kPastCaches) _mm_sfence();
#endif
}

}  // namespace
}  // namespace pyext
