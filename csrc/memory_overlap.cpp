// Overlap of tensors: by their strides, or by marking the bytes that they lie on.
#include "memory_overlap.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <utility>

namespace pyext {
namespace {

// The bytes that a tensor lies on: from the first of its storage to one behind the last.
std::pair<int64_t, int64_t> span_of(const at::Tensor& x) {
  int64_t last = 0;
  for (int64_t d = 0; d < x.dim(); ++d) last += (x.size(d) - 1) * x.stride(d);
  const int64_t begin = x.storage_offset() * x.element_size();
  return {begin, begin + (last + 1) * x.element_size()};
}

// Those bytes, marked, as far as they lie in a span.
at::Tensor marked_bytes(const at::Tensor& x, std::pair<int64_t, int64_t> span) {
  c10::SmallVector<int64_t, 6> sizes(x.sizes().begin(), x.sizes().end()), strides;
  for (const int64_t stride : x.strides()) strides.push_back(stride * x.element_size());
  sizes.push_back(x.element_size());
  strides.push_back(1);
  at::Tensor bytes = at::zeros({span.second - span.first}, at::kBool);
  bytes.as_strided(sizes, strides, span_of(x).first - span.first).fill_(true);
  return bytes;
}

// Where strides alone do not tell, every byte is looked at, if there are not too many.
constexpr int64_t kMarkedBytes = int64_t{1} << 28;

}  // namespace

bool overlaps_itself(const at::Tensor& x) {
  const auto overlap = at::has_internal_overlap(x);
  if (overlap != at::MemOverlap::TooHard) return overlap == at::MemOverlap::Yes;
  const auto span = span_of(x);
  if (span.second - span.first > kMarkedBytes) return false;
  return marked_bytes(x, span).sum().item<int64_t>() < static_cast<int64_t>(x.nbytes());
}

bool overlaps(const at::Tensor& x, const at::Tensor& y) {
  const auto overlap = at::get_overlap_status(x, y);
  if (overlap != at::MemOverlapStatus::TooHard) return overlap != at::MemOverlapStatus::No;
  const auto a = span_of(x), b = span_of(y);
  const auto both = std::pair{std::min(a.first, b.first), std::max(a.second, b.second)};
  if (!x.is_alias_of(y) || a.second <= b.first || b.second <= a.first ||
      both.second - both.first > kMarkedBytes) {
    return false;
  }
  return marked_bytes(x, both).logical_and(marked_bytes(y, both)).any().item<bool>();
}

}  // namespace pyext
