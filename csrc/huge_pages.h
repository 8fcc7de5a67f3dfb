// Asks the kernel for huge pages under a large fresh output: the page faults of 4 KiB pages cost
// more than the arithmetic of a memory-bound op.
#pragma once

#include <ATen/core/Tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace pyext {

inline void advise_huge_pages(const at::Tensor& fresh) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{1} << 21;
  if (!fresh.device().is_cpu()) return;
  const auto begin = reinterpret_cast<uintptr_t>(fresh.data_ptr());
  const auto end = begin + fresh.nbytes();
  const auto first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const auto last = end / kHugePage * kHugePage;
  // Advice only: where the kernel declines, the pages stay small.
  if (first + kHugePage < last)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)fresh;
#endif
}

}  // namespace pyext
