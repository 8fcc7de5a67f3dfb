// Sums of products without a matrix product in them: one pass over memory, nothing materialised.
//
// One index becomes the lane of the vectors. When it is an index of the result, a run of results is
// summed side by side; when it is summed over, the lanes are added up at the end. Factors that are
// not contiguous along it, or of another type, are packed block by block.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "contraction.h"
#include "cpu/bricks.h"
#include "cpu/factors.h"
#include "cpu/lanes.h"

namespace pyext {
namespace {

template <typename T>
class MultiplyReduce {
 public:
  explicit MultiplyReduce(const SumOfProducts& problem) : problem_(problem) {
    factors_ = problem.factors();
    choose_lane();
    sort_factors();
    for (const auto& dim : problem_.dims) (dim.out == 0 ? summed_ : kept_).push_back(dim);
    // The result is written in its order.
    std::stable_sort(kept_.begin(), kept_.end(),
                     [](const ProductDim& a, const ProductDim& b) { return a.out > b.out; });
    order_sums();
    whole_ = whole_loop();
    alpha_ = problem_.alpha.to<T>();
    beta_ = problem_.beta.to<T>();
  }

  // In how many pieces the sums are better formed, so that many threads have work and long sums
  // keep their digits.
  int64_t pieces() const {
    int64_t results = lane_.out == 0 ? 1 : lane_.size;
    for (const auto& dim : kept_) results *= dim.size;
    const int64_t terms = sums_size() * (lane_.out == 0 ? lane_.size : 1);
    if (lane_.out == 0) return results > 64 ? 1 : std::min<int64_t>(1024, terms / 16384);
    const int64_t tasks = (results + kLanes - 1) / kLanes;
    return std::min(64 / tasks, terms / 256);
  }

  void run() const {
    const int64_t outer = outer_size();
    if (lane_.out == 0) {
      const int64_t work = std::max<int64_t>(1, lane_.size * sums_size());
      const int64_t grain = std::max<int64_t>(1, kGrain / work);
      at::parallel_for(0, outer, grain, [&](int64_t begin, int64_t end) { add_up(begin, end); });
      return;
    }
    const int64_t chunk = lanes_per_chunk(), chunks = (lane_.size + chunk - 1) / chunk;
    const int64_t work = std::max<int64_t>(1, std::min(chunk, lane_.size) * sums_size());
    const int64_t grain = std::max<int64_t>(1, kGrain / work);
    at::parallel_for(0, outer * chunks, grain,
                     [&](int64_t begin, int64_t end) { side_by_side(begin, end, chunk, chunks); });
  }

 private:
  // Where each factor of a brick begins and how far its values lie apart: where they are, or packed
  // as [summed indices][lanes].
  struct Loop {
    Pointers<T> base{};
    std::array<Strides, kMaxIndices> step{};
    std::array<int64_t, kMaxIndices> extent{};
    int depth = 0;
  };

  static constexpr int64_t kGrain = 16384, kWidth = at::vec::Vectorized<T>::size();

  int64_t outer_size() const {
    int64_t product = 1;
    for (const auto& dim : kept_) product *= dim.size;
    return product;
  }

  int64_t sums_size() const {
    int64_t product = 1;
    for (const auto& dim : summed_) product *= dim.size;
    return product;
  }

  bool direct(int f, const ProductDim& lane) const {
    return (lane.in[f] == 0 || lane.in[f] == 1) && has_type(problem_.in[f]);
  }
  static bool has_type(const ProductTensor& x) {
    return x.dtype == c10::CppTypeToScalarType<T>::value;
  }

  // Takes the index that costs least as the lane: few vectors, little to pack.
  void choose_lane() {
    double iterations = 1;
    for (const auto& dim : problem_.dims) iterations *= dim.size;
    int best = -1;
    double least = 0;
    for (size_t d = 0; d < problem_.dims.size(); ++d) {
      const ProductDim& lane = problem_.dims[d];
      // Whole vectors, what is left one by one, and what it takes to begin.
      const int64_t steps = lane.size / kWidth + lane.size % kWidth + 4;
      double cost = iterations / static_cast<double>(lane.size) * static_cast<double>(steps);
      double results = 1;
      for (const auto& dim : problem_.dims) results *= dim.out == 0 ? 1 : dim.size;
      for (int f = 0; f < factors_; ++f) {
        double volume = 1;
        for (const auto& dim : problem_.dims) {
          volume *= dim.in[f] != 0 || dim.out != 0 ? dim.size : 1;
        }
        if (!direct(f, lane)) cost += volume;
      }
      if (lane.out == 0) cost += 8 * results;
      if (lane.out > 1) cost += results;
      if (best < 0 || cost < least) best = static_cast<int>(d), least = cost;
    }
    if (best >= 0) {
      lane_ = problem_.dims[best];
      problem_.dims.erase(problem_.dims.begin() + best);
    } else {
      lane_ = {1, 1};  // no index at all: one result, contiguous
    }
  }

  // Factors that vary along the lane first.
  void sort_factors() {
    std::array<int, kMaxFactors> order;
    int count = 0;
    for (int f = 0; f < factors_; ++f) {
      if (lane_.in[f] != 0) order[count++] = f;
    }
    vectors_ = count;
    for (int f = 0; f < factors_; ++f) {
      if (lane_.in[f] == 0) order[count++] = f;
    }
    const auto reorder = [&](ProductDim& dim) {
      const auto old = dim.in;
      for (int f = 0; f < factors_; ++f) dim.in[f] = old[order[f]];
    };
    reorder(lane_);
    for (auto& dim : problem_.dims) reorder(dim);
    auto in = problem_.in;
    for (int f = 0; f < factors_; ++f) in[f] = problem_.in[order[f]];
    problem_.in = in;
    for (int f = 0; f < factors_; ++f) {
      packed_[f] = !direct(f, lane_);
      packs_ |= packed_[f];
    }
  }

  // Cuts the summed indices into bricks for which factors are packed; the longest run innermost.
  void order_sums() {
    std::stable_sort(summed_.begin(), summed_.end(),
                     [](const ProductDim& a, const ProductDim& b) { return a.size < b.size; });
    bricks_.resize(summed_.size());
    int64_t room = kBrick;
    for (int i = static_cast<int>(summed_.size()) - 1; i >= 0; --i) {
      bricks_[i] = packs_ ? std::min(summed_[i].size, std::max<int64_t>(room, 1)) : summed_[i].size;
      room /= bricks_[i];
    }
  }

  int64_t brick_size() const {
    int64_t product = 1;
    for (const int64_t brick : bricks_) product *= brick;
    return product;
  }

  int64_t lanes_per_chunk() const {
    if (!packs_) return kLanes;
    return std::clamp<int64_t>(kPacked / brick_size() / kWidth * kWidth, kWidth, kLanes);
  }

  static constexpr int64_t kBrick = 256, kLanes = 2048, kPacked = 16384, kRows = 4;

  // Calls f(begins, extents) for every brick of the summed indices.
  template <typename F>
  void for_each_brick(const F& f) const {
    std::array<int64_t, kMaxIndices> begin{}, extent{};
    int64_t count = 1;
    for (size_t i = 0; i < summed_.size(); ++i) {
      count *= (summed_[i].size + bricks_[i] - 1) / bricks_[i];
    }
    for (int64_t number = 0; number < count; ++number) {
      int64_t rest = number;
      for (int i = static_cast<int>(summed_.size()) - 1; i >= 0; --i) {
        const int64_t along = (summed_[i].size + bricks_[i] - 1) / bricks_[i];
        begin[i] = rest % along * bricks_[i];
        extent[i] = std::min(bricks_[i], summed_[i].size - begin[i]);
        rest /= along;
      }
      f(begin, extent);
    }
  }

  // All summed indices where they are: what is left per result is where its factors begin.
  Loop whole_loop() const {
    Loop loop;
    loop.depth = static_cast<int>(summed_.size());
    for (int i = 0; i < loop.depth; ++i) {
      loop.extent[i] = summed_[i].size;
      for (int f = 0; f < factors_; ++f) loop.step[i][f] = summed_[i].in[f];
    }
    return loop;
  }

  // Calls f(pointers, run) for every run of the sums of the results at these offsets.
  template <typename F>
  void for_each_run(const Strides& offsets, int64_t lanes, T* scratch, int64_t scratch_size,
                    const F& f) const {
    if (!packs_) {
      Pointers<T> base;
      for (int k = 0; k < factors_; ++k) {
        base[k] = static_cast<const T*>(problem_.in[k].data) + offsets[k];
      }
      return walk(whole_, f, 0, base);
    }
    for_each_brick([&](const auto& begin, const auto& extent) {
      const Loop loop = loop_over(offsets, begin, extent, lanes, scratch, scratch_size);
      walk(loop, f, 0, loop.base);
    });
  }

  Loop loop_over(const Strides& offsets, const std::array<int64_t, kMaxIndices>& begin,
                 const std::array<int64_t, kMaxIndices>& extent, int64_t lanes, T* scratch,
                 int64_t scratch_size) const {
    Loop loop;
    loop.depth = static_cast<int>(summed_.size());
    loop.extent = extent;
    for (int f = 0; f < factors_; ++f) {
      int64_t offset = offsets[f];
      for (int i = 0; i < loop.depth; ++i) offset += begin[i] * summed_[i].in[f];
      if (!packed_[f]) {
        loop.base[f] = static_cast<const T*>(problem_.in[f].data) + offset;
        for (int i = 0; i < loop.depth; ++i) loop.step[i][f] = summed_[i].in[f];
        continue;
      }
      MoveDims move;
      const bool varies = lane_.in[f] != 0;
      int64_t step = 1;
      if (varies) {
        move.add(lanes, lane_.in[f], 1);
        step = lanes;
      }
      for (int i = loop.depth - 1; i >= 0; --i) {
        if (summed_[i].in[f] == 0) continue;
        move.add(extent[i], summed_[i].in[f], step);
        loop.step[i][f] = step;
        step *= extent[i];
      }
      T* to = scratch + f * scratch_size;
      gather(to, problem_.in[f], offset, move);
      loop.base[f] = to;
    }
    return loop;
  }

  // Calls f(pointers, run) for the innermost index at every combination of the others.
  template <typename F>
  void walk(const Loop& loop, const F& f, int depth, Pointers<T> x) const {
    if (depth + 1 >= loop.depth) {
      Run run;
      if (loop.depth > 0) {
        run.count = loop.extent[loop.depth - 1];
        run.step = loop.step[loop.depth - 1];
      }
      return f(x, run);
    }
    for (int64_t i = 0; i < loop.extent[depth]; ++i) {
      walk(loop, f, depth + 1, x);
      for (int k = 0; k < factors_; ++k) x[k] += loop.step[depth][k];
    }
  }

  // Where the factors and the result of one combination of the kept indices begin.
  struct Position {
    Strides in{};
    int64_t out = 0;
    std::array<int64_t, kMaxIndices> index{};
  };

  Position position_of(int64_t number) const {
    Position at;
    for (int i = static_cast<int>(kept_.size()) - 1; i >= 0; --i) {
      at.index[i] = number % kept_[i].size;
      number /= kept_[i].size;
      move(at, i, at.index[i]);
    }
    return at;
  }

  void move(Position& at, int i, int64_t steps) const {
    for (int f = 0; f < factors_; ++f) at.in[f] += steps * kept_[i].in[f];
    at.out += steps * kept_[i].out;
  }

  // Moves on by `steps` of the last index, which stay within its row or just reach its end.
  void advance(Position& at, int64_t steps) const {
    for (int i = static_cast<int>(kept_.size()) - 1; i >= 0; --i) {
      move(at, i, steps);
      at.index[i] += steps;
      if (at.index[i] < kept_[i].size) return;
      move(at, i, -kept_[i].size);
      at.index[i] = 0;
      steps = 1;
    }
  }

  void side_by_side(int64_t begin, int64_t end, int64_t chunk, int64_t chunks) const {
    const int64_t scratch_size = packs_ ? chunk * brick_size() : 0;
    const auto scratch = make_scratch<T>(scratch_size * factors_);
    const auto sums_scratch = make_scratch<T>(chunk);
    const bool in_place =
        lane_.out == 1 && has_type(problem_.out) && alpha_ == T(1) && beta_ == T(0);
    // Results that are not contiguous along the lane lie between those of other indices: these come
    // next, while their cache lines are at hand.
    const bool lanes_last = lane_.out == 1;
    const int64_t outer = outer_size();
    Position at = position_of(lanes_last ? begin / chunks : begin % outer);
    if (in_place && summed_.empty() && !packs_ && chunks == 1 && !kept_.empty()) {
      return multiply(at, end - begin);
    }
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = (lanes_last ? task % chunks : task / outer) * chunk;
      const int64_t lanes = std::min(chunk, lane_.size - first);
      Strides offsets = at.in;
      for (int f = 0; f < factors_; ++f) offsets[f] += first * lane_.in[f];
      const int64_t out = at.out + first * lane_.out;
      T* sums = in_place ? static_cast<T*>(problem_.out.data) + out : sums_scratch.get();
      bool accumulate = false;
      for_each_run(offsets, lanes, scratch.get(), scratch_size,
                   [&](const Pointers<T>& x, const Run& run) {
                     side_by_side_of(sums, lanes, x, run, accumulate);
                     accumulate = true;
                   });
      if (!in_place) put(out, lane_.out, lanes, sums);
      if (!lanes_last || first + lanes == lane_.size) advance(at, 1);
    }
  }

  // `count` results of all lanes, of which nothing is summed.
  void multiply(Position at, int64_t count) const {
    const auto rows_of = [&](auto vectors, int64_t rows) {
      Pointers<T> x;
      for (int f = 0; f < factors_; ++f) {
        x[f] = static_cast<const T*>(problem_.in[f].data) + at.in[f];
      }
      multiply_rows<T, decltype(vectors)::value>(static_cast<T*>(problem_.out.data) + at.out,
                                                 kept_.back().out, rows, lane_.size, x, factors_,
                                                 kept_.back().in);
    };
    while (count > 0) {
      const int64_t rows = std::min(count, kept_.back().size - at.index[kept_.size() - 1]);
      switch (vectors_) {
        case 0:
          rows_of(std::integral_constant<int, 0>{}, rows);
          break;
        case 1:
          rows_of(std::integral_constant<int, 1>{}, rows);
          break;
        case 2:
          rows_of(std::integral_constant<int, 2>{}, rows);
          break;
        default:
          rows_of(std::integral_constant<int, 3>{}, rows);
      }
      advance(at, rows);
      count -= rows;
    }
  }

  // A few terms at a time pass over all lanes: memory is read in long stretches, and sums are
  // formed of short chains, which lose fewer digits than one long chain.
  void side_by_side_of(T* sums, int64_t lanes, Pointers<T> x, Run run, bool accumulate) const {
    const int64_t terms = lanes > 8 * kWidth ? 8 : 16;
    for (int64_t left = run.count; left > 0; left -= terms) {
      run.count = std::min(left, terms);
      some_side_by_side(sums, lanes, x, run, accumulate);
      for (int f = 0; f < factors_; ++f) x[f] += terms * run.step[f];
      accumulate = true;
    }
  }

  void some_side_by_side(T* sums, int64_t lanes, const Pointers<T>& x, const Run& run,
                         bool accumulate) const {
    switch (vectors_) {
      case 0:
        return sum_side_by_side<T, 0>(sums, lanes, x, factors_, run, accumulate);
      case 1:
        return sum_side_by_side<T, 1>(sums, lanes, x, factors_, run, accumulate);
      case 2:
        return sum_side_by_side<T, 2>(sums, lanes, x, factors_, run, accumulate);
      default:
        return sum_side_by_side<T, 3>(sums, lanes, x, factors_, run, accumulate);
    }
  }

  void add_up(int64_t begin, int64_t end) const {
    const int64_t chunk = packs_ ? std::min<int64_t>(lane_.size, kLanes) : lane_.size;
    const int64_t scratch_size = packs_ ? chunk * brick_size() : 0;
    const auto scratch = make_scratch<T>(scratch_size * factors_);
    Position at = position_of(begin);
    for (int64_t task = begin; task < end;) {
      const int64_t left =
          kept_.empty() ? 1 : std::min(end - task, kept_.back().size - at.index[kept_.size() - 1]);
      // Rows of less than a page are one stream as they follow each other.
      const bool is_long = lane_.size * static_cast<int64_t>(sizeof(T)) >= 4096;
      const bool together = left >= kRows && is_long && !packs_ && vectors_ > 0;
      if (together) {
        add_up_rows<kRows>(at, chunk, scratch.get(), scratch_size);
      } else {
        add_up_rows<1>(at, chunk, scratch.get(), scratch_size);
      }
      advance(at, together ? kRows : 1);
      task += together ? kRows : 1;
    }
  }

  // `rows` results, neighbours in the last index.
  template <int rows>
  void add_up_rows(const Position& at, int64_t chunk, T* scratch, int64_t scratch_size) const {
    using Vec = at::vec::Vectorized<T>;
    const Strides row_step = kept_.empty() ? Strides{} : kept_.back().in;
    Vec sum[rows];
    T rest[rows];
    for (int r = 0; r < rows; ++r) sum[r] = Vec(rest[r] = T(0));
    for (int64_t first = 0; first < lane_.size; first += chunk) {
      const int64_t lanes = std::min(chunk, lane_.size - first);
      Strides offsets = at.in;
      for (int f = 0; f < factors_; ++f) offsets[f] += first * lane_.in[f];
      for_each_run(offsets, lanes, scratch, scratch_size, [&](Pointers<T> x, const Run& run) {
        for (int64_t i = 0; i < run.count; ++i) {
          add_up_of<rows>(sum, rest, lanes, x, row_step);
          for (int f = 0; f < factors_; ++f) x[f] += run.step[f];
        }
      });
    }
    for (int r = 0; r < rows; ++r) {
      const T total = total_of(sum[r], rest[r]);
      put(at.out + (rows > 1 ? r * kept_.back().out : 0), 1, 1, &total);
    }
  }

  // The sum of the lanes and of what did not fill a vector, rounded once.
  static T total_of(const at::vec::Vectorized<T>& sum, T rest) {
    using wide_t = std::conditional_t<std::is_same_v<T, float>, double, T>;
    T lanes[kWidth];
    sum.store(lanes);
    wide_t wide[kWidth];
    for (int i = 0; i < kWidth; ++i) wide[i] = static_cast<wide_t>(lanes[i]);
    for (int half = kWidth / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) wide[i] = wide[i] + wide[i + half];
    }
    return static_cast<T>(wide[0] + static_cast<wide_t>(rest));
  }

  template <int rows>
  void add_up_of(at::vec::Vectorized<T>* sum, T* rest, int64_t lanes, const Pointers<T>& x,
                 const Strides& row_step) const {
    T scalar[rows];
    for (int r = 0; r < rows; ++r) {
      scalar[r] = T(1);
      for (int f = vectors_; f < factors_; ++f) scalar[r] = scalar[r] * x[f][r * row_step[f]];
    }
    switch (vectors_) {
      case 0:
        rest[0] = rest[0] + scalar[0] * static_cast<T>(lanes);
        return;
      case 1:
        return sum_along<T, 1, rows>(sum, rest, lanes, x, row_step, scalar);
      case 2:
        return sum_along<T, 2, rows>(sum, rest, lanes, x, row_step, scalar);
      default:
        return sum_along<T, 3, rows>(sum, rest, lanes, x, row_step, scalar);
    }
  }

  // Writes `count` sums, `stride` apart, with alpha and beta.
  void put(int64_t offset, int64_t stride, int64_t count, const T* sums) const {
    dispatch_factor<T>(problem_.out.dtype, [&](auto zero) {
      using out_t = decltype(zero);
      out_t* to = static_cast<out_t*>(problem_.out.data) + offset;
      if (alpha_ == T(1) && beta_ == T(0)) return copy_run(to, stride, sums, 1, count);
      for (int64_t i = 0; i < count; ++i) {
        T value = alpha_ * sums[i];
        if (beta_ != T(0)) value = value + beta_ * static_cast<T>(to[i * stride]);
        to[i * stride] = converted<out_t>(value);
      }
    });
  }

  SumOfProducts problem_;
  int factors_ = 0, vectors_ = 0;
  ProductDim lane_{1};
  c10::SmallVector<ProductDim, 8> kept_, summed_;
  c10::SmallVector<int64_t, 8> bricks_;
  std::array<bool, kMaxFactors> packed_{};
  bool packs_ = false;
  Loop whole_;
  T alpha_{}, beta_{};
};

}  // namespace
}  // namespace pyext
