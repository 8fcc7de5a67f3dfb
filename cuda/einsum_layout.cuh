// Which index of a sum of products neighbouring threads walk along, and how many threads share a
// result. It depends on the problem alone, not on the device, so that every bit of a sum does too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "einsum_loops.cuh"
#include "einsum_traffic.cuh"

namespace pyext {
namespace {

class Layout {
 public:
  using Dims = c10::SmallVector<ProductDim, 8>;

  explicit Layout(const SumOfProducts& problem) : problem_(problem), traffic_(problem) {
    for (const auto& dim : problem.dims) {
      if (dim.size != 1) (dim.out == 0 ? summed_ : kept_).push_back(dim);
    }
    order();
    // There is always a first index.
    if (summed_.empty()) summed_.push_back({1});
    if (kept_.empty()) kept_.push_back({1, 1});
    width_ = vectorizes(vector_width()) ? vector_width() : 1;
    if (columns_ && width_ == 1) split_tiles();
    group();
  }

  int width() const { return width_; }
  int64_t pieces() const { return pieces_; }
  // Those of the result, the first varies fastest.
  const Dims& kept() const { return kept_; }

  int64_t blocks() const {
    const int slots = kThreads >> group_log2_;
    return (results() + slots - 1) / slots;
  }

  // For a grid of blocks() x pieces(). The results of several pieces go to `scratch`, each piece's
  // in the order of kept().
  template <typename acc_t>
  Loops<acc_t> loops(void* scratch = nullptr) const {
    TORCH_CHECK(kept_.size() + summed_.size() <= kMaxDims, "einsum(): expected at most ", kMaxDims,
                " indices of more than one value, got ", kept_.size() + summed_.size());
    Loops<acc_t> p;
    p.kept = static_cast<int>(kept_.size());
    p.summed = static_cast<int>(summed_.size());
    p.results = results();
    p.terms = terms();
    p.columns = columns_;
    p.any = problem_.out.dtype == at::kBool;
    p.group_log2 = group_log2_;
    p.piece_terms = piece_terms_;
    p.piece_stride = scratch != nullptr ? product(kept_) : 0;
    Dims kept = kept_, summed = summed_;
    if (scratch != nullptr) place_contiguously(kept);
    p.out = result<acc_t>(kept, scratch);
    ProductDim& lane = columns_ ? kept[0] : summed[0];
    for (int f = 0; f < problem_.factors(); ++f) {
      p.in[f] = {problem_.in[f].data, problem_.in[f].dtype, lane.in[f] == 0};
      lane.in[f] *= width_;
    }
    lane.out *= width_;
    lane.size /= width_;
    for (int d = 0; d < p.kept; ++d) p.dims[d] = LoopDim(kept[d]);
    for (int d = 0; d < p.summed; ++d) p.dims[p.kept + d] = LoopDim(summed[d]);
    return p;
  }

  // Gives dims the strides of a contiguous result.
  static void place_contiguously(Dims& dims) {
    int64_t stride = 1;
    for (auto& dim : dims) {
      dim.out = stride;
      stride *= dim.size;
    }
  }

  static int64_t product(const Dims& dims) {
    int64_t product = 1;
    for (const auto& dim : dims) product *= dim.size;
    return product;
  }

 private:
  static constexpr int64_t kManyThreads = 1 << 17;  // enough for a large device
  static constexpr int64_t kFewTerms = 16;          // per thread: not worth another one
  static constexpr int64_t kLongSum = 256;          // per thread: slow, and loses digits

  int64_t results() const { return product(kept_) / (columns_ ? width_ : 1); }
  int64_t terms() const { return product(summed_) / (columns_ ? 1 : width_); }

  template <typename F>
  void each_dim(const F& f) const {
    for (const auto& dim : kept_) f(dim);
    for (const auto& dim : summed_) f(dim);
  }

  // Takes the index of least traffic as the lane, and puts those of small strides first.
  void order() {
    Dims candidates = kept_;
    if (kept_.empty() || product(summed_) >= kFewTerms) {
      candidates.append(summed_.begin(), summed_.end());
    }
    size_t best = 0;
    double least = std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < candidates.size(); ++i) {
      const double cost = traffic_.along(candidates[i]);
      if (cost < least) best = i, least = cost;
    }
    columns_ = best < kept_.size() || candidates.empty();
    if (!candidates.empty()) {
      Dims& dims = columns_ ? kept_ : summed_;
      const auto lane = dims.begin() + (columns_ ? best : best - kept_.size());
      std::rotate(dims.begin(), lane, lane + 1);
    }
    const auto sort = [&](Dims& dims, bool has_lane) {
      std::stable_sort(dims.begin() + has_lane, dims.end(),
                       [&](const ProductDim& a, const ProductDim& b) {
                         return traffic_.nearness(a) < traffic_.nearness(b);
                       });
    };
    sort(kept_, columns_ && !kept_.empty());
    sort(summed_, !columns_);
  }

  // The values of a vector load, if factors are of one dtype that has such kernels.
  int vector_width() const {
    const at::ScalarType dtype = problem_.in[0].dtype;
    for (const auto& x : problem_.in) {
      if (x.dtype != dtype) return 1;
    }
    switch (dtype) {
      case at::kFloat:
      case at::kDouble:
      case at::kBFloat16:
      case at::kHalf:
      case at::kInt:
      case at::kLong:
        return static_cast<int>(kVectorBytes / static_cast<int64_t>(c10::elementSize(dtype)));
      default:
        return 1;
    }
  }

  bool vectorizes(int width) const {
    const ProductDim& lane = columns_ ? kept_[0] : summed_[0];
    if (width == 1 || lane.size % width != 0) return false;
    for (int f = 0; f < problem_.factors(); ++f) {
      if (lane.in[f] > 1) return false;
      if (lane.in[f] == 1 && !is_aligned(f, lane, width)) return false;
    }
    return true;
  }

  // Whether every unit of a tensor begins where loads and stores of it may.
  bool is_aligned(int t, const ProductDim& lane, int width) const {
    const int64_t item = traffic_.item(t), bytes = std::min<int64_t>(kVectorBytes, width * item);
    bool aligned = reinterpret_cast<uintptr_t>(traffic_.tensor(t).data) % bytes == 0;
    each_dim([&](const ProductDim& dim) {
      aligned &= &dim == &lane || Traffic::stride(dim, t) * item % bytes == 0;
    });
    return aligned;
  }

  // Where one tensor is contiguous along the lane and another along a second index of the result,
  // a block takes a tile of both, so that the sectors of both are whole.
  void split_tiles() {
    bool done = false;
    traffic_.each_tensor([&](int t) { done = done || split_tiles_for(t); });
  }

  bool split_tiles_for(int t) {
    if (!traffic_.matters(t) || Traffic::stride(kept_[0], t) <= 1) return false;
    const auto other = std::find_if(kept_.begin() + 1, kept_.end(), [&](const ProductDim& dim) {
      return Traffic::stride(dim, t) == 1;
    });
    if (other == kept_.end()) return false;
    const int64_t height = std::max<int64_t>(4, kSector / traffic_.item(t));
    const int64_t width = kThreads / height;
    const ProductDim lane = kept_[0], second = *other;
    const int64_t i = divisor(lane.size, width), j = divisor(second.size, height);
    if (2 * i < width || 2 * j < height) return false;
    kept_.erase(other);
    Dims tiled = {part(lane, i, 1), part(second, j, 1)};
    if (j < second.size) tiled.push_back(part(second, second.size / j, j));
    if (i < lane.size) tiled.push_back(part(lane, lane.size / i, i));
    tiled.append(kept_.begin() + 1, kept_.end());
    kept_ = tiled;
    return true;
  }

  static ProductDim part(ProductDim dim, int64_t size, int64_t step) {
    dim.size = size;
    dim.out *= step;
    for (auto& stride : dim.in) stride *= step;
    return dim;
  }

  // The largest one that is not above `most`.
  static int64_t divisor(int64_t size, int64_t most) {
    int64_t best = std::min(size, most);
    while (size % best != 0) --best;
    return best;
  }

  static int64_t power_above(int64_t x) {
    int64_t power = 1;
    while (power < x) power *= 2;
    return power;
  }

  void group() {
    const int64_t results = this->results(), terms = this->terms();
    // A row of threads along the lane should be 128 bytes.
    const int64_t along = width_ > 1 ? 8 : kWarp;
    const int64_t most = columns_ ? kThreads / power_above(std::min(results, along)) : kThreads;
    const int64_t few = columns_ ? kFewTerms : 4;  // rows are only read as a whole by a group
    int64_t group = 1;
    while (
        group < most && terms / group >= 2 * few &&
        ((!columns_ && group < 8) || results * group < kManyThreads || terms / group > kLongSum)) {
      group *= 2;
      ++group_log2_;
    }
    piece_terms_ = terms;
    if (group < most || results * group >= kManyThreads) return;
    const int64_t wanted = kManyThreads / (results * group);
    const int64_t pieces = std::min(wanted, terms / (group * kFewTerms));
    if (pieces < 2) return;
    piece_terms_ = ((terms + pieces - 1) / pieces + group - 1) / group * group;
    pieces_ = (terms + piece_terms_ - 1) / piece_terms_;
  }

  template <typename acc_t>
  Result<acc_t> result(const Dims& kept, void* scratch) const {
    const bool units = columns_ && width_ > 1;
    Result<acc_t> out = result_of<acc_t>(problem_);
    if (scratch != nullptr) out = {scratch, problem_.dtype};
    out.unit_stride = kept[0].out;
    out.packed = units && kept[0].out == 1 &&
                 (scratch != nullptr || is_aligned(Traffic::kResult, kept_[0], width_));
    return out;
  }

  const SumOfProducts& problem_;
  const Traffic traffic_;
  Dims kept_, summed_;  // the fastest first
  bool columns_ = true;
  int width_ = 1, group_log2_ = 0;
  int64_t piece_terms_ = 0, pieces_ = 1;
};

}  // namespace
}  // namespace pyext
