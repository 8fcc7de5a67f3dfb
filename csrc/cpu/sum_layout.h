// How a sum of products is walked through: which index is the lane of the vectors, which indices
// are kept and which summed over, and where each factor lies or is packed to. What is packed serves
// all results of a few indices, the inner ones: so are products of many small matrices formed.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "contraction.h"
#include "cpu/factors.h"
#include "cpu/lanes.h"

namespace pyext {
namespace {

template <typename T>
class SumLayout {
 public:
  explicit SumLayout(const SumOfProducts& sum) : problem(sum), factors(sum.factors()) {
    choose_lane();
    sort_factors();
    const auto shared = inner_of(lane, problem.dims);
    for (size_t d = 0; d < problem.dims.size(); ++d) {
      const ProductDim& dim = problem.dims[d];
      (dim.out == 0 ? summed : shared[d] ? inner : kept).push_back(dim);
    }
    // The result is written in its order.
    std::stable_sort(kept.begin(), kept.end(),
                     [](const ProductDim& a, const ProductDim& b) { return a.out > b.out; });
    order_sums();
    whole_ = whole_loop();
  }

  int64_t outer_size() const {
    int64_t product = 1;
    for (const auto& dim : kept) product *= dim.size;
    return product;
  }

  int64_t sums_size() const {
    int64_t product = 1;
    for (const auto& dim : summed) product *= dim.size;
    return product;
  }

  int64_t inner_size() const {
    int64_t product = 1;
    for (const auto& dim : inner) product *= dim.size;
    return product;
  }

  // Where in the result the inner indices of this number lie.
  int64_t inner_offset(int64_t number) const {
    int64_t offset = 0;
    for (int i = static_cast<int>(inner.size()) - 1; i >= 0; --i) {
      offset += number % inner[i].size * inner[i].out;
      number /= inner[i].size;
    }
    return offset;
  }

  // How many values per lane are packed of a factor, at most.
  int64_t packed_size() const {
    int64_t most = 1;
    for (int f = 0; f < factors; ++f) {
      int64_t size = 1;
      for (size_t i = 0; i < summed.size(); ++i) size *= summed[i].in[f] != 0 ? bricks_[i] : 1;
      for (const auto& dim : inner) size *= dim.in[f] != 0 ? dim.size : 1;
      if (packed_[f]) most = std::max(most, size);
    }
    return most;
  }

  // Whether the result has the type that is summed in.
  bool result_has_type() const { return has_type(problem.out); }

  // Calls f(number, pointers, run, first) for every run of the sums of the results at these
  // offsets: of those that the inner indices number, and whether it is the first of its sum.
  template <typename F>
  void for_each_run(const Strides& offsets, int64_t lanes, T* scratch, int64_t scratch_size,
                    const F& f) const {
    if (!packs) {
      Pointers<T> base;
      for (int k = 0; k < factors; ++k) {
        base[k] = static_cast<const T*>(problem.in[k].data) + offsets[k];
      }
      bool first = true;
      return walk(whole_, f, 0, 0, base, first);
    }
    bool first_brick = true;
    for_each_brick([&](const auto& begin, const auto& extent) {
      const Loop loop = loop_over(offsets, begin, extent, lanes, scratch, scratch_size);
      const int64_t results = inner_size();
      for (int64_t number = 0; number < results; ++number) {
        Pointers<T> base = loop.base;
        int64_t rest = number;
        for (int i = static_cast<int>(inner.size()) - 1; i >= 0; --i) {
          const int64_t value = rest % inner[i].size;
          rest /= inner[i].size;
          for (int k = 0; k < factors; ++k) base[k] += value * loop.inner_step[i][k];
        }
        bool first = first_brick;
        walk(loop, f, number, 0, base, first);
      }
      first_brick = false;
    });
  }

  // Where the factors and the result of one combination of the kept indices begin.
  struct Position {
    Strides in{};
    int64_t out = 0;
    std::array<int64_t, kMaxIndices> index{};
  };

  Position position_of(int64_t number) const {
    Position at;
    for (int i = static_cast<int>(kept.size()) - 1; i >= 0; --i) {
      at.index[i] = number % kept[i].size;
      number /= kept[i].size;
      move(at, i, at.index[i]);
    }
    return at;
  }

  void move(Position& at, int i, int64_t steps) const {
    for (int f = 0; f < factors; ++f) at.in[f] += steps * kept[i].in[f];
    at.out += steps * kept[i].out;
  }

  // Moves on by `steps` of the last index, which stay within its row or just reach its end.
  void advance(Position& at, int64_t steps) const {
    for (int i = static_cast<int>(kept.size()) - 1; i >= 0; --i) {
      move(at, i, steps);
      at.index[i] += steps;
      if (at.index[i] < kept[i].size) return;
      move(at, i, -kept[i].size);
      at.index[i] = 0;
      steps = 1;
    }
  }

  SumOfProducts problem;     // without the lane, factors that vary along the lane first
  int factors, vectors = 0;  // all of them, and those that vary along the lane
  ProductDim lane{1};
  c10::SmallVector<ProductDim, 8> kept, inner, summed;
  bool packs = false;  // some factor is packed

 private:
  // Where each factor of a brick begins and how far its values lie apart: where they are, or packed
  // as [summed and inner indices][lanes].
  struct Loop {
    Pointers<T> base{};
    std::array<Strides, kMaxIndices> step{}, inner_step{};
    std::array<int64_t, kMaxIndices> extent{};
    int depth = 0;
  };

  static constexpr int64_t kWidth = at::vec::Vectorized<T>::size(), kBrick = 256, kInner = 64;

  bool direct(int f, const ProductDim& lane) const {
    return (lane.in[f] == 0 || lane.in[f] == 1) && has_type(problem.in[f]);
  }
  static bool has_type(const ProductTensor& x) {
    return x.dtype == c10::CppTypeToScalarType<T>::value;
  }

  // Which of these indices are inner ones with this lane: short ones that a packed factor does not
  // depend on.
  std::array<bool, kMaxIndices> inner_of(const ProductDim& lane,
                                         const c10::SmallVectorImpl<ProductDim>& dims) const {
    std::array<bool, kMaxIndices> result{};
    if (lane.out == 0) return result;
    int64_t room = kInner;
    for (size_t d = 0; d < dims.size(); ++d) {
      const ProductDim& dim = dims[d];
      if (&dim == &lane || dim.out == 0 || dim.size > room) continue;
      for (int f = 0; f < factors; ++f) result[d] |= dim.in[f] == 0 && !direct(f, lane);
      if (result[d]) room /= dim.size;
    }
    return result;
  }

  // Takes the index that costs least as the lane: few vectors, little to pack.
  void choose_lane() {
    double iterations = 1;
    for (const auto& dim : problem.dims) iterations *= dim.size;
    int best = -1;
    double least = 0;
    for (size_t d = 0; d < problem.dims.size(); ++d) {
      const ProductDim& lane = problem.dims[d];
      // Whole vectors, what is left one by one, and what it takes to begin.
      const int64_t steps = lane.size / kWidth + lane.size % kWidth + 4;
      double cost = iterations / static_cast<double>(lane.size) * static_cast<double>(steps);
      double results = 1;
      for (const auto& dim : problem.dims) results *= dim.out == 0 ? 1 : dim.size;
      const auto shared = inner_of(lane, problem.dims);
      for (int f = 0; f < factors; ++f) {
        double volume = 1;
        for (size_t i = 0; i < problem.dims.size(); ++i) {
          const ProductDim& dim = problem.dims[i];
          volume *= dim.in[f] != 0 || (dim.out != 0 && !shared[i]) ? dim.size : 1;
        }
        if (!direct(f, lane)) cost += volume;
      }
      if (lane.out == 0) cost += 8 * results;
      if (lane.out > 1) cost += results;
      if (best < 0 || cost < least) best = static_cast<int>(d), least = cost;
    }
    if (best >= 0) {
      lane = problem.dims[best];
      problem.dims.erase(problem.dims.begin() + best);
    } else {
      lane = {1, 1};  // no index at all: one result, contiguous
    }
  }

  // Factors that vary along the lane first.
  void sort_factors() {
    std::array<int, kMaxFactors> order;
    int count = 0;
    for (int f = 0; f < factors; ++f) {
      if (lane.in[f] != 0) order[count++] = f;
    }
    vectors = count;
    for (int f = 0; f < factors; ++f) {
      if (lane.in[f] == 0) order[count++] = f;
    }
    const auto reorder = [&](ProductDim& dim) {
      const auto old = dim.in;
      for (int f = 0; f < factors; ++f) dim.in[f] = old[order[f]];
    };
    reorder(lane);
    for (auto& dim : problem.dims) reorder(dim);
    auto in = problem.in;
    for (int f = 0; f < factors; ++f) in[f] = problem.in[order[f]];
    problem.in = in;
    for (int f = 0; f < factors; ++f) {
      packed_[f] = !direct(f, lane);
      packs |= packed_[f];
    }
  }

  // Cuts the summed indices into bricks for which factors are packed; the longest run innermost.
  void order_sums() {
    std::stable_sort(summed.begin(), summed.end(),
                     [](const ProductDim& a, const ProductDim& b) { return a.size < b.size; });
    bricks_.resize(summed.size());
    int64_t room = kBrick;
    for (int i = static_cast<int>(summed.size()) - 1; i >= 0; --i) {
      bricks_[i] = packs ? std::min(summed[i].size, std::max<int64_t>(room, 1)) : summed[i].size;
      room /= bricks_[i];
    }
  }

  // Calls f(begins, extents) for every brick of the summed indices.
  template <typename F>
  void for_each_brick(const F& f) const {
    std::array<int64_t, kMaxIndices> begin{}, extent{};
    int64_t count = 1;
    for (size_t i = 0; i < summed.size(); ++i) {
      count *= (summed[i].size + bricks_[i] - 1) / bricks_[i];
    }
    for (int64_t number = 0; number < count; ++number) {
      int64_t rest = number;
      for (int i = static_cast<int>(summed.size()) - 1; i >= 0; --i) {
        const int64_t along = (summed[i].size + bricks_[i] - 1) / bricks_[i];
        begin[i] = rest % along * bricks_[i];
        extent[i] = std::min(bricks_[i], summed[i].size - begin[i]);
        rest /= along;
      }
      f(begin, extent);
    }
  }

  // All summed indices where they are: what is left per result is where its factors begin.
  Loop whole_loop() const {
    Loop loop;
    loop.depth = static_cast<int>(summed.size());
    for (int i = 0; i < loop.depth; ++i) {
      loop.extent[i] = summed[i].size;
      for (int f = 0; f < factors; ++f) loop.step[i][f] = summed[i].in[f];
    }
    return loop;
  }

  Loop loop_over(const Strides& offsets, const std::array<int64_t, kMaxIndices>& begin,
                 const std::array<int64_t, kMaxIndices>& extent, int64_t lanes, T* scratch,
                 int64_t scratch_size) const {
    Loop loop;
    loop.depth = static_cast<int>(summed.size());
    loop.extent = extent;
    for (int f = 0; f < factors; ++f) {
      int64_t offset = offsets[f];
      for (int i = 0; i < loop.depth; ++i) offset += begin[i] * summed[i].in[f];
      if (!packed_[f]) {
        loop.base[f] = static_cast<const T*>(problem.in[f].data) + offset;
        for (int i = 0; i < loop.depth; ++i) loop.step[i][f] = summed[i].in[f];
        for (size_t i = 0; i < inner.size(); ++i) loop.inner_step[i][f] = inner[i].in[f];
        continue;
      }
      MoveDims move;
      const bool varies = lane.in[f] != 0;
      int64_t step = 1;
      if (varies) {
        move.add(lanes, lane.in[f], 1);
        step = lanes;
      }
      // As they lie in the factor.
      struct Packed {
        int64_t size, from;
        int64_t* step;
      };
      c10::SmallVector<Packed, 8> order;
      for (int i = loop.depth - 1; i >= 0; --i) {
        if (summed[i].in[f] != 0) order.push_back({extent[i], summed[i].in[f], &loop.step[i][f]});
      }
      for (size_t i = 0; i < inner.size(); ++i) {
        const ProductDim& dim = inner[i];
        if (dim.in[f] != 0) order.push_back({dim.size, dim.in[f], &loop.inner_step[i][f]});
      }
      std::sort(order.begin(), order.end(),
                [](const Packed& a, const Packed& b) { return a.from < b.from; });
      for (const Packed& dim : order) {
        move.add(dim.size, dim.from, step);
        *dim.step = step;
        step *= dim.size;
      }
      T* to = scratch + f * scratch_size;
      gather(to, problem.in[f], offset, move);
      loop.base[f] = to;
    }
    return loop;
  }

  // Calls f(number, pointers, run, first) for the innermost index at every combination of the
  // others.
  template <typename F>
  void walk(const Loop& loop, const F& f, int64_t number, int depth, Pointers<T> x,
            bool& first) const {
    if (depth + 1 >= loop.depth) {
      Run run;
      if (loop.depth > 0) {
        run.count = loop.extent[loop.depth - 1];
        run.step = loop.step[loop.depth - 1];
      }
      f(number, x, run, first);
      first = false;
      return;
    }
    for (int64_t i = 0; i < loop.extent[depth]; ++i) {
      walk(loop, f, number, depth + 1, x, first);
      for (int k = 0; k < factors; ++k) x[k] += loop.step[depth][k];
    }
  }

  c10::SmallVector<int64_t, 8> bricks_;
  std::array<bool, kMaxFactors> packed_{};
  Loop whole_;
};

}  // namespace
}  // namespace pyext
