// What a sum of products moves through memory, by the index that neighbouring threads walk along.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "contraction.h"

namespace pyext {
namespace {

constexpr int64_t kSector = 32;  // bytes: what memory delivers at least

class Traffic {
 public:
  // Tensors are numbered: the factors, then the result.
  static constexpr int kResult = kMaxFactors;
  static int64_t stride(const ProductDim& dim, int t) { return t == kResult ? dim.out : dim.in[t]; }

  explicit Traffic(const SumOfProducts& problem) : problem_(problem) {
    for (const auto& dim : problem.dims) iterations_ *= static_cast<double>(dim.size);
    each_tensor([&](int t) {
      bytes_[t] = static_cast<double>(item(t));
      for (const auto& dim : problem.dims) {
        if (stride(dim, t) != 0) bytes_[t] *= static_cast<double>(dim.size);
      }
    });
  }

  template <typename F>
  void each_tensor(const F& f) const {
    for (int t = 0; t < problem_.factors(); ++t) f(t);
    f(int{kResult});
  }

  const ProductTensor& tensor(int t) const { return t == kResult ? problem_.out : problem_.in[t]; }
  int64_t item(int t) const { return static_cast<int64_t>(c10::elementSize(tensor(t).dtype)); }

  // Whether most of the bytes are not elsewhere.
  bool matters(int t) const {
    return bytes_[t] >= 0.2 * *std::max_element(bytes_.begin(), bytes_.end());
  }

  // Of memory where threads walk along `lane`, and, at a fraction of the price, of the caches.
  double along(const ProductDim& lane) const {
    // Of two indices that are contiguous in one tensor each, rather that of the result.
    constexpr double kCachePrice = 0.05, kWritePrice = 1.25;
    constexpr double kBroadcast = 1.0 / 32;
    double sum = 0;
    each_tensor([&](int t) {
      const bool broadcast = stride(lane, t) == 0;
      const double waste = broadcast ? 1 : wasted(lane, t);
      const double accesses = t == kResult ? bytes_[t] : iterations_ * static_cast<double>(item(t));
      const double cached = kCachePrice * accesses * (broadcast ? kBroadcast : waste);
      sum += (bytes_[t] * waste + cached) * (t == kResult ? kWritePrice : 1);
    });
    return sum;
  }

  // The smallest stride in a tensor that matters.
  int64_t nearness(const ProductDim& dim) const {
    int64_t least = std::numeric_limits<int64_t>::max();
    each_tensor([&](int t) {
      if (matters(t) && stride(dim, t) != 0) least = std::min(least, stride(dim, t));
    });
    return least;
  }

 private:
  // How many times as much is moved as is wanted.
  double wasted(const ProductDim& lane, int t) const {
    const auto sector = static_cast<double>(kSector) / static_cast<double>(item(t));
    const auto step = static_cast<double>(stride(lane, t));
    if (step > 1) return std::max(1.0, std::min(step, sector));
    const bool continued =
        std::any_of(problem_.dims.begin(), problem_.dims.end(),
                    [&](const ProductDim& dim) { return stride(dim, t) == lane.size; });
    return continued ? 1 : std::max(1.0, sector / static_cast<double>(lane.size));
  }

  const SumOfProducts& problem_;
  std::array<double, kMaxFactors + 1> bytes_{};
  double iterations_ = 1;
};

}  // namespace
}  // namespace pyext
