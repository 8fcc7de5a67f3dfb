// Sums of products without a matrix product in them: one pass over memory, nothing materialised.
//
// One index becomes the lane of the vectors. When it is an index of the result, a run of results is
// summed side by side; when it is summed over, the lanes are added up at the end. Factors that are
// not contiguous along it, or of another type, are packed block by block.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "contraction.h"
#include "cpu/factors.h"
#include "cpu/lanes.h"
#include "cpu/sum_layout.h"

namespace pyext {
namespace {

template <typename T>
class MultiplyReduce {
 public:
  explicit MultiplyReduce(const SumOfProducts& problem)
      : x_(problem), alpha_(problem.alpha.to<T>()), beta_(problem.beta.to<T>()) {}

  // In how many pieces the sums are better formed, so that many threads have work and long sums
  // keep their digits.
  int64_t pieces() const {
    int64_t results = (x_.lane.out == 0 ? 1 : x_.lane.size) * x_.inner_size();
    for (const auto& dim : x_.kept) results *= dim.size;
    const int64_t terms = x_.sums_size() * (x_.lane.out == 0 ? x_.lane.size : 1);
    if (x_.lane.out == 0) return results > 64 ? 1 : std::min<int64_t>(1024, terms / 16384);
    const int64_t tasks = (results + kLanes - 1) / kLanes;
    return std::min(64 / tasks, terms / 256);
  }

  void run() const {
    const int64_t outer = x_.outer_size();
    if (x_.lane.out == 0) {
      const int64_t work = std::max<int64_t>(1, x_.lane.size * x_.sums_size());
      const int64_t grain = std::max<int64_t>(1, kGrain / work);
      at::parallel_for(0, outer, grain, [&](int64_t begin, int64_t end) { add_up(begin, end); });
      return;
    }
    const int64_t chunk = lanes_per_chunk(), chunks = (x_.lane.size + chunk - 1) / chunk;
    const int64_t terms = x_.sums_size() * x_.inner_size();
    const int64_t work = std::max<int64_t>(1, std::min(chunk, x_.lane.size) * terms);
    const int64_t grain = std::max<int64_t>(1, kGrain / work);
    at::parallel_for(0, outer * chunks, grain,
                     [&](int64_t begin, int64_t end) { side_by_side(begin, end, chunk, chunks); });
  }

 private:
  static constexpr int64_t kGrain = 16384, kWidth = at::vec::Vectorized<T>::size();

  // As many as leave the sums, or what is packed, in the first cache.
  int64_t lanes_per_chunk() const {
    constexpr int64_t kLanesOfProducts = 16384;
    if (!x_.packs) return x_.summed.empty() ? kLanesOfProducts : kLanes;
    return std::clamp<int64_t>(kPacked / x_.packed_size() / kWidth * kWidth, kWidth, kLanes);
  }

  static constexpr int64_t kLanes = 2048, kPacked = 16384, kRows = 4;

  void side_by_side(int64_t begin, int64_t end, int64_t chunk, int64_t chunks) const {
    const int64_t scratch_size = x_.packs ? chunk * x_.packed_size() : 0;
    const auto scratch = make_scratch<T>(scratch_size * x_.factors);
    const auto sums_scratch = make_scratch<T>(chunk * x_.inner_size());
    const bool in_place =
        x_.lane.out == 1 && x_.result_has_type() && alpha_ == T(1) && beta_ == T(0);
    // Results that are not contiguous along the lane lie between those of other indices: these come
    // next, while their cache lines are at hand.
    const bool lanes_last = x_.lane.out == 1;
    const int64_t outer = x_.outer_size();
    auto at = x_.position_of(lanes_last ? begin / chunks : begin % outer);
    if (in_place && x_.summed.empty() && !x_.packs && chunks == 1 && !x_.kept.empty()) {
      return multiply(at, end - begin);
    }
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = (lanes_last ? task % chunks : task / outer) * chunk;
      const int64_t lanes = std::min(chunk, x_.lane.size - first);
      Strides offsets = at.in;
      for (int f = 0; f < x_.factors; ++f) offsets[f] += first * x_.lane.in[f];
      const int64_t out = at.out + first * x_.lane.out;
      T* result = static_cast<T*>(x_.problem.out.data);
      x_.for_each_run(offsets, lanes, scratch.get(), scratch_size,
                      [&](int64_t number, const Pointers<T>& x, const Run& run, bool is_first) {
                        T* sums = in_place ? result + out + x_.inner_offset(number)
                                           : sums_scratch.get() + number * lanes;
                        side_by_side_of(sums, lanes, x, run, !is_first);
                      });
      if (!in_place) put_inner(out, lanes, sums_scratch.get());
      if (!lanes_last || first + lanes == x_.lane.size) x_.advance(at, 1);
    }
  }

  // `count` results of all lanes, of which nothing is summed.
  void multiply(typename SumLayout<T>::Position at, int64_t count) const {
    const int64_t bytes = x_.outer_size() * x_.lane.size * static_cast<int64_t>(sizeof(T));
    while (count > 0) {
      const int64_t rows = std::min(count, x_.kept.back().size - at.index[x_.kept.size() - 1]);
      Pointers<T> x;
      for (int f = 0; f < x_.factors; ++f) {
        x[f] = static_cast<const T*>(x_.problem.in[f].data) + at.in[f];
      }
      T* out = static_cast<T*>(x_.problem.out.data) + at.out;
      with_vectors([&](auto vectors) {
        const auto multiply = bytes < kTooLargeForCaches
                                  ? multiply_rows<T, vectors, Store::kFetched>
                                  : multiply_rows<T, vectors, Store::kPastCaches>;
        multiply(out, x_.kept.back().out, rows, x_.lane.size, x, x_.factors, x_.kept.back().in);
      });
      x_.advance(at, rows);
      count -= rows;
    }
  }

  // A few terms at a time pass over all lanes: memory is read in long stretches, and sums are
  // formed of short chains, which lose fewer digits than one long chain.
  void side_by_side_of(T* sums, int64_t lanes, Pointers<T> x, Run run, bool accumulate) const {
    const int64_t terms = lanes > 8 * kWidth ? 8 : 16;
    for (int64_t left = run.count; left > 0; left -= terms) {
      run.count = std::min(left, terms);
      with_vectors([&](auto vectors) {
        sum_side_by_side<T, vectors>(sums, lanes, x, x_.factors, run, accumulate);
      });
      for (int f = 0; f < x_.factors; ++f) x[f] += terms * run.step[f];
      accumulate = true;
    }
  }

  void add_up(int64_t begin, int64_t end) const {
    const int64_t chunk = x_.packs ? std::min<int64_t>(x_.lane.size, kLanes) : x_.lane.size;
    const int64_t scratch_size = x_.packs ? chunk * x_.packed_size() : 0;
    const auto scratch = make_scratch<T>(scratch_size * x_.factors);
    // Rows of less than a page are one stream as they follow each other.
    const bool is_long = x_.lane.size * static_cast<int64_t>(sizeof(T)) >= 4096;
    auto at = x_.position_of(begin);
    for (int64_t task = begin; task < end;) {
      const int64_t left =
          x_.kept.empty()
              ? 1
              : std::min(end - task, x_.kept.back().size - at.index[x_.kept.size() - 1]);
      if (is_plain() && !is_long && !x_.kept.empty()) {
        add_up_short_rows(at, left);
        x_.advance(at, left);
        task += left;
        continue;
      }
      const bool together = left >= kRows && is_long && !x_.packs && x_.vectors > 0;
      if (together) {
        add_up_rows<kRows>(at, chunk, scratch.get(), scratch_size);
      } else {
        add_up_rows<1>(at, chunk, scratch.get(), scratch_size);
      }
      x_.advance(at, together ? kRows : 1);
      task += together ? kRows : 1;
    }
  }

  // Whether sums lie along the lane alone, where they are, and are written as they are.
  bool is_plain() const {
    return x_.summed.empty() && !x_.packs && x_.vectors > 0 && x_.result_has_type() &&
           alpha_ == T(1) && beta_ == T(0);
  }

  // `rows` results, neighbours in the last index, of which each is soon done.
  void add_up_short_rows(const typename SumLayout<T>::Position& at, int64_t rows) const {
    using Vec = at::vec::Vectorized<T>;
    const ProductDim& row = x_.kept.back();
    T* to = static_cast<T*>(x_.problem.out.data) + at.out;
    Pointers<T> x{};
    for (int f = 0; f < x_.factors; ++f) {
      x[f] = static_cast<const T*>(x_.problem.in[f].data) + at.in[f];
    }
    with_vectors([&](auto vectors) {
      for (int64_t r = 0; r < rows; ++r) {
        Vec sum(T(0));
        T rest(0);
        const T scalar = product_of<vectors>(x, x_.factors, 0, {});
        if constexpr (vectors > 0) {
          sum_along<T, vectors, 1>(&sum, &rest, x_.lane.size, x, {}, &scalar);
        }
        to[r * row.out] = total_of(sum, rest);
        for (int f = 0; f < x_.factors; ++f) x[f] += row.in[f];
      }
    });
  }

  // `rows` results, neighbours in the last index.
  template <int rows>
  void add_up_rows(const typename SumLayout<T>::Position& at, int64_t chunk, T* scratch,
                   int64_t scratch_size) const {
    using Vec = at::vec::Vectorized<T>;
    const Strides row_step = x_.kept.empty() ? Strides{} : x_.kept.back().in;
    Vec sum[rows];
    T rest[rows];
    for (int r = 0; r < rows; ++r) sum[r] = Vec(rest[r] = T(0));
    for (int64_t first = 0; first < x_.lane.size; first += chunk) {
      const int64_t lanes = std::min(chunk, x_.lane.size - first);
      Strides offsets = at.in;
      for (int f = 0; f < x_.factors; ++f) offsets[f] += first * x_.lane.in[f];
      x_.for_each_run(offsets, lanes, scratch, scratch_size,
                      [&](int64_t, Pointers<T> x, const Run& run, bool) {
                        for (int64_t i = 0; i < run.count; ++i) {
                          add_up_of<rows>(sum, rest, lanes, x, row_step);
                          for (int f = 0; f < x_.factors; ++f) x[f] += run.step[f];
                        }
                      });
    }
    for (int r = 0; r < rows; ++r) {
      const T total = total_of(sum[r], rest[r]);
      put(at.out + (rows > 1 ? r * x_.kept.back().out : 0), 1, 1, &total);
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
      for (int f = x_.vectors; f < x_.factors; ++f) scalar[r] = scalar[r] * x[f][r * row_step[f]];
    }
    with_vectors([&](auto vectors) {
      if constexpr (vectors == 0) {
        rest[0] = rest[0] + scalar[0] * static_cast<T>(lanes);
      } else {
        sum_along<T, vectors, rows>(sum, rest, lanes, x, row_step, scalar);
      }
    });
  }

  // Calls f with the number of factors that vary along the lane, as a constant.
  template <typename F>
  void with_vectors(const F& f) const {
    switch (x_.vectors) {
      case 0:
        return f(std::integral_constant<int, 0>{});
      case 1:
        return f(std::integral_constant<int, 1>{});
      case 2:
        return f(std::integral_constant<int, 2>{});
      default:
        return f(std::integral_constant<int, 3>{});
    }
  }

  // Writes `count` sums, `stride` apart, with alpha and beta.
  void put(int64_t offset, int64_t stride, int64_t count, const T* sums) const {
    dispatch_factor<T>(x_.problem.out.dtype, [&](auto zero) {
      using out_t = decltype(zero);
      out_t* to = static_cast<out_t*>(x_.problem.out.data) + offset;
      if (alpha_ == T(1) && beta_ == T(0)) return copy_run(to, stride, sums, 1, count);
      for (int64_t i = 0; i < count; ++i) {
        T value = alpha_ * sums[i];
        if (beta_ != T(0)) value = value + beta_ * static_cast<T>(to[i * stride]);
        to[i * stride] = converted<out_t>(value);
      }
    });
  }

  // The same for all results of the inner indices, each of which has its sums in a row.
  void put_inner(int64_t offset, int64_t lanes, const T* sums) const {
    if (alpha_ == T(1) && beta_ == T(0)) {
      MoveDims move;
      int64_t row = lanes;
      move.add(lanes, 1, x_.lane.out);
      for (int i = static_cast<int>(x_.inner.size()) - 1; i >= 0; --i) {
        move.add(x_.inner[i].size, row, x_.inner[i].out);
        row *= x_.inner[i].size;
      }
      return scatter(x_.problem.out, offset, sums, move);
    }
    for (int64_t i = 0; i < x_.inner_size(); ++i) {
      put(offset + x_.inner_offset(i), x_.lane.out, lanes, sums + i * lanes);
    }
  }

  SumLayout<T> x_;
  T alpha_, beta_;
};

}  // namespace
}  // namespace pyext
