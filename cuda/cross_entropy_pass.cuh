// What the forward and the backward pass share: one row as one of its threads goes through it.
#pragma once

#include <cstdint>

#include "cross_entropy_row.cuh"
#include "cross_entropy_sums.cuh"
#include "cross_entropy_walk.cuh"

namespace pyext {
namespace {

template <typename scalar_t, int kWidth, bool kPlain>
struct Row {
  using acc_t = at::opmath_type<scalar_t>;
  using Sums = OnlineSums<acc_t, kPlain>;
  static_assert(kPlain || kWidth == 1);
  static constexpr int kLoads = kLoadsOf<scalar_t, kWidth, kPlain>;
  static constexpr int kSharedSums = kWidth > 1 ? kMaxBlock<scalar_t> / kWarp : kBlock;  // see join

  const CrossEntropyProblem& p;
  const Shape& shape;
  const Place place;
  const Classes<scalar_t, kWidth> classes;
  const int64_t probabilities_offset;
  const ClassInputs<acc_t> inputs;

  __device__ Row(const CrossEntropyProblem& p_, const Shape& shape_, int64_t block, bool statistics)
      : p(p_),
        shape(shape_),
        place(shape_, p_.rows, block),
        classes(p_, place, shape_.group),
        probabilities_offset(!kPlain && p_.probabilities != nullptr
                                 ? p_.layout.offset(RowLayout::kProbabilities, place.row)
                                 : 0),
        inputs{static_cast<const acc_t*>(p_.class_mass),
               static_cast<const acc_t*>(p_.prior),
               static_cast<const acc_t*>(p_.weight),
               p_.masked,
               p_.probabilities != nullptr,
               statistics} {}

  __device__ acc_t transformed(acc_t x) const {
    if constexpr (kPlain) return x;
    return transformed_logit(x, static_cast<acc_t>(p.logit_scale), static_cast<acc_t>(p.softcap),
                             p.capped);
  }

  __device__ auto load(int64_t c) const { return classes.template load<kLoads>(c); }

  // Weight times probability at the classes of a batch.
  template <int kCount>
  __device__ void load_probabilities(acc_t (&wq)[kCount],
                                     const Batch<scalar_t, kCount, 1>& batch) const {
    load_as(wq, p.probabilities, p.probabilities_dtype, probabilities_offset,
            p.layout.class_stride[RowLayout::kProbabilities], batch);
    if (inputs.weight == nullptr) return;
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      if (batch.has(u)) wq[u] *= inputs.weight[batch.class_of(u)];
    }
  }

  // The logit at a target, 0 without one.
  __device__ acc_t logit_at(int64_t y) const {
    return y == RowTargets::kNone ? acc_t(0) : transformed(classes.logit(y));
  }

  // Calls f(batch) for all classes of this thread. The first batch comes from the caller, who loads
  // it before anything else so as not to wait for memory twice.
  template <typename FirstBatch, typename F>
  __device__ void each_batch(FirstBatch batch, const F& f) const {
    for (;;) {
      f(batch);
      const int64_t next = batch.first + kLoads * batch.step;
      if (next >= classes.end()) break;
      batch = load(next);
    }
  }

  template <typename FirstBatch>
  __device__ void add_to(Sums& sums, const FirstBatch& first) const {
    each_batch(first, [&](const auto& batch) {
      if constexpr (kPlain) {
        sums.add(batch);
      } else {
        acc_t z[kLoads], wq[kLoads] = {};
        if (inputs.probabilities) load_probabilities(wq, batch);
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          z[i] = transformed(batch.x[i][0]);
        }
        sums.add(batch, z, wq, inputs);
      }
    });
  }

  template <int kCount, int kLanes>
  __device__ void write_gradient(scalar_t* to, const Batch<scalar_t, kCount, kLanes>& batch,
                                 const RowTargets& targets,
                                 const GradientTerms<acc_t>& terms) const {
    // Everything is loaded before anything is stored, which might be the same memory to the
    // compiler.
    acc_t u[kCount], wq[kCount] = {};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      u[i] = !kPlain && inputs.u != nullptr && batch.has(i) ? inputs.u[batch.class_of(i)] : 1;
    }
    if constexpr (!kPlain) {
      if (inputs.probabilities) load_probabilities(wq, batch);
    }
    const int at_a = batch.position(targets.a), at_b = batch.position(targets.b);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (!batch.has(i)) continue;
      acc_t z[kLanes], d[kLanes];
#pragma unroll
      for (int v = 0; v < kLanes; ++v) {
        z[v] = transformed(batch.x[i][v]);
        d[v] = class_gradient(terms, z[v], u[i], wq[i], !kPlain && inputs.masked);
      }
      subtract_at(d, at_a - i * batch.step, terms.pick_a);
      subtract_at(d, at_b - i * batch.step, terms.pick_b);
      if constexpr (!kPlain) {
        d[0] *= transformed_logit_derivative(z[0], static_cast<acc_t>(p.logit_scale),
                                             static_cast<acc_t>(p.softcap), p.capped);
      }
      store(to, batch.class_of(i), d);
    }
  }

  template <int kCount, int kLanes>
  __device__ void write_zeros(scalar_t* to, const Batch<scalar_t, kCount, kLanes>& batch) const {
    const acc_t zeros[kLanes] = {};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (batch.has(i)) store(to, batch.class_of(i), zeros);
    }
  }

 private:
  // Not values[at] -= pick: an index known at run time alone would move them out of registers.
  template <int kLanes>
  static __device__ void subtract_at(acc_t (&values)[kLanes], int at, acc_t pick) {
    if (at < 0 || at >= kLanes) return;
#pragma unroll
    for (int v = 0; v < kLanes; ++v) {
      if (v == at) values[v] -= pick;
    }
  }

  template <int kLanes>
  __device__ void store(scalar_t* to, int64_t c, const acc_t (&values)[kLanes]) const {
    Vector<scalar_t, kLanes> vector;
#pragma unroll
    for (int v = 0; v < kLanes; ++v) vector.values[v] = static_cast<scalar_t>(values[v]);
    const int64_t stride = p.layout.class_stride[RowLayout::kGradient];
    *reinterpret_cast<Vector<scalar_t, kLanes>*>(classes.at(to, stride, c)) = vector;
  }
};

}  // namespace
}  // namespace pyext
