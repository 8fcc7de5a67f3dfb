// Memory for results on the CPU.
#include "result_memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/CPUAllocator.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pyext {
namespace {

#if defined(MADV_FREE) && defined(MADV_HUGEPAGE)

constexpr size_t kHugePage = size_t{1} << 21;

// Where the kernel declines, the pages stay small.
void advise_huge_pages(void* memory, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const auto first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const auto last = (begin + bytes) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

using Clock = std::chrono::steady_clock;

struct Block {
  char* memory;
  size_t capacity;
  Clock::time_point freed = {};
  bool marked_free = false;
};

// Whole huge pages.
Block map(size_t bytes) {
  const size_t capacity = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* mapped = mmap(nullptr, capacity + kHugePage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  TORCH_CHECK_WITH(OutOfMemoryError, mapped != MAP_FAILED, "pyext: cannot allocate ", bytes,
                   " bytes for a result");
  char* begin = static_cast<char*>(mapped);
  const size_t skipped = -reinterpret_cast<uintptr_t>(begin) % kHugePage;
  if (skipped > 0) munmap(begin, skipped);
  munmap(begin + skipped + capacity, kHugePage - skipped);
  advise_huge_pages(begin + skipped, capacity);
  return {begin + skipped, capacity};
}

// Blocks that nobody uses. A thread that finds it locked, or a child that was forked while it was,
// does without.
class Kept {
 public:
  bool take(size_t bytes, Block& block) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return false;
    for (size_t i = blocks_.size(); i-- > 0;) {
      if (blocks_[i].capacity < bytes || blocks_[i].capacity > bytes + bytes / 4 + kHugePage)
        continue;
      block = blocks_[i];
      blocks_.erase(blocks_.begin() + static_cast<int64_t>(i));
      return true;
    }
    return false;
  }

  void give(Block block) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return unmap(block);
    block.freed = Clock::now();
    block.marked_free = false;
    blocks_.push_back(block);
    if (blocks_.size() > kMost) {
      unmap(blocks_.front());
      blocks_.erase(blocks_.begin());
    }
    mark_idle(block.freed);
  }

 private:
  static constexpr size_t kMost = 8;
  static constexpr size_t kMostUnmarked = size_t{1} << 30;  // bytes
  static constexpr auto kIdle = std::chrono::seconds(1);

  static void unmap(const Block& block) { munmap(block.memory, block.capacity); }

  // Not at once: the mark costs as much as writing a quarter of the block where threads of a
  // virtual machine must be told, and a loop takes the block again before anybody else could.
  void mark_idle(Clock::time_point now) {
    size_t unmarked = 0;
    for (size_t i = blocks_.size(); i-- > 0;) {
      Block& block = blocks_[i];
      if (block.marked_free) continue;
      unmarked += block.capacity;
      if (unmarked <= kMostUnmarked && now - block.freed < kIdle) continue;
      block.marked_free = madvise(block.memory, block.capacity, MADV_FREE) == 0;
      if (block.marked_free) continue;
      unmap(block);
      blocks_.erase(blocks_.begin() + static_cast<int64_t>(i));
    }
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
};

Kept& kept() {
  static Kept* const blocks = new Kept;  // results may be freed after static objects are
  return *blocks;
}

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  c10::profiledCPUMemoryReporter().Delete(block->memory);
  kept().give(*block);
  delete block;
}

struct ResultAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    Block block;
    if (!kept().take(bytes, block)) block = map(bytes);
    c10::profiledCPUMemoryReporter().New(block.memory, bytes);
    return {block.memory, new Block(block), &release, c10::Device(c10::kCPU)};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

// The allocator for so many bytes, or null: what malloc keeps itself need not be marked free.
c10::Allocator* allocator_for(size_t bytes) {
  constexpr size_t kLeast = size_t{4} << 20;
  static ResultAllocator allocator;
  static const char* const setting = std::getenv("PYEXT_REUSE_MEMORY");
  static const bool reuses = setting == nullptr || std::strcmp(setting, "0") != 0;
  return reuses && bytes >= kLeast ? &allocator : nullptr;
}

#else

void advise_huge_pages(void*, size_t) {}
c10::Allocator* allocator_for(size_t) { return nullptr; }

#endif

}  // namespace

at::Tensor empty_strided_result(at::IntArrayRef sizes, at::IntArrayRef strides,
                                const at::TensorOptions& options) {
  const auto dtype = c10::typeMetaToScalarType(options.dtype());
  const size_t bytes = at::detail::computeStorageNbytes(sizes, strides, c10::elementSize(dtype));
  c10::Allocator* const allocator = options.device().is_cpu() ? allocator_for(bytes) : nullptr;
  if (allocator != nullptr) {
    const c10::DispatchKeySet keys(c10::DispatchKey::CPU);
    return at::detail::empty_strided_generic(sizes, strides, allocator, keys, dtype);
  }
  const at::Tensor result = at::empty_strided(sizes, strides, options);
  if (result.is_cpu()) advise_huge_pages(result.data_ptr(), bytes);
  return result;
}

at::Tensor empty_result(at::IntArrayRef sizes, const at::TensorOptions& options) {
  c10::SmallVector<int64_t, 6> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  return empty_strided_result(sizes, strides, options);
}

at::Tensor empty_result_like(const at::Tensor& x) {
  if (x.is_non_overlapping_and_dense()) {
    return empty_strided_result(x.sizes(), x.strides(), x.options());
  }
  return empty_strided_result(x.sizes(), at::infer_dense_strides(x.sizes(), x.strides()),
                              x.options());
}

}  // namespace pyext
