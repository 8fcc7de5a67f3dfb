// The sums over the classes of a row: each thread adds batches of logits to its own, relative to
// the largest logit it has met (Milakov and Gimelshein 2018, "Online normalizer calculation for
// softmax"), then the threads of a group join theirs. The order of additions depends on the shape
// of the problem alone.
#pragma once

#include <cstdint>

#include "cross_entropy_row.cuh"
#include "cross_entropy_walk.cuh"

namespace pyext {
namespace {

// exp(x), x <= 0, as a term of a sum: two instructions where expf takes eight, of the fifteen or so
// for which bfloat16 logits leave time. ex2.approx errs by 2 units in the last place and rounding
// x log2(e) adds |x| of them, but such a term weighs exp(x): the sum is off by no more than one
// that is made with expf. Below 2^-126 it is 0.
__device__ __forceinline__ float term(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
#else
  return exponential(x);
#endif
}
__device__ __forceinline__ double term(double x) { return exponential(x); }

template <typename T>
__device__ __forceinline__ T from_lane(T value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}

// What the general kernels read of each class beside its logit; null pointers stand for ones.
template <typename acc_t>
struct ClassInputs {
  const acc_t* u;
  const acc_t* prior;
  const acc_t* weight;
  bool masked;
  bool probabilities;
  bool statistics;  // entropy and argmax
};

// `kPlain`: exponentials and the sum of the logits are all that is wanted. The members after u_sum
// are then never touched.
template <typename acc_t, bool kPlain>
struct OnlineSums {
  acc_t maximum;
  acc_t sum;        // sum exp(z - shift), shift being the maximum, or 0 as long as that is -inf
  acc_t u_dot;      // sum u (z - shift)
  acc_t u_sum;      // sum u
  acc_t shared;     // masked: how many classes, or how much prior, share the smoothing
  acc_t dense_sum;  // sum w q
  acc_t dense_dot;  // sum w q (z - shift)
  acc_t z_dot;      // sum exp(z - shift) (z - shift)
  acc_t best;       // the logit at argmax; a NaN is larger than any number, as in torch.argmax
  int64_t argmax;

  // Not by initializers: arrays of this type lie in shared memory.
  static __device__ OnlineSums none() {
    const acc_t zero(0), least = -kInfinity<acc_t>;
    return {least, zero, zero, zero, zero, zero, zero, zero, least, INT64_MAX};
  }

  __device__ acc_t shift() const { return where(maximum == -kInfinity<acc_t>, acc_t(0), maximum); }

  template <typename scalar_t, int kLoads, int kWidth>
  __device__ void add(const Batch<scalar_t, kLoads, kWidth>& batch) {
    acc_t next = maximum;
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      if (batch.has(u)) next = larger(next, batch.x[u].largest());
    }
    move_to(next);
    const acc_t origin = shift();
    acc_t exponentials(0), logits(0);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      if (!batch.has(u)) continue;
#pragma unroll
      for (int v = 0; v < kWidth; ++v) {
        const acc_t d = batch.x[u][v] - origin;
        exponentials += term(d);
        logits += d;
      }
      u_sum += kWidth;
    }
    sum += exponentials;
    u_dot += logits;
  }

  // z: the logits of the batch, scaled and capped; wq: weight times probability of each class.
  template <typename scalar_t, int kLoads>
  __device__ void add(const Batch<scalar_t, kLoads, 1>& batch, const acc_t (&z)[kLoads],
                      const acc_t (&wq)[kLoads], const ClassInputs<acc_t>& in) {
    acc_t next = maximum;
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      if (batch.has(u)) next = larger(next, z[u]);
    }
    move_to(next);
    const acc_t origin = shift();
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      if (!batch.has(u)) continue;
      const int64_t c = batch.class_of(u);
      const acc_t d = z[u] - origin, e = term(d);
      sum += e;
      if (!(in.masked && z[u] == -kInfinity<acc_t>)) {
        const acc_t mass = in.u ? in.u[c] : acc_t(1);
        u_sum += mass;
        u_dot += taken(mass, d);
        shared += in.prior ? in.prior[c] : acc_t(1);
      }
      if (in.probabilities) {
        dense_sum += wq[u];
        dense_dot += taken(wq[u], d);
      }
      if (in.statistics) {
        z_dot += taken(e, d);
        keep_larger(z[u], c);
      }
    }
  }

  // Joins the sums of `lanes` neighbouring lanes, and leaves them in each. All of a warp must call.
  __device__ void join_lanes(int lanes) {
    acc_t next = maximum;
    for (int d = lanes / 2; d > 0; d /= 2) next = larger(next, from_lane(next, d));
    move_to(next);
    for (int d = lanes / 2; d > 0; d /= 2) {
      each_sum([&](acc_t OnlineSums::* s) { this->*s += from_lane(this->*s, d); });
      if constexpr (!kPlain) keep_larger(from_lane(best, d), from_lane(argmax, d));
    }
  }

  // Joins the sums of a group, and leaves them in each of its threads. `shared_sums` has room for
  // one per warp, where groups are columns for one per thread. All of a block must call.
  template <bool kMayBeColumns>
  __device__ void join(const Shape& shape, OnlineSums* shared_sums) {
    const int thread = static_cast<int>(threadIdx.x);
    if (!kMayBeColumns || !shape.columns) {
      join_lanes(shape.group < kWarp ? shape.group : kWarp);
      if (shape.group <= kWarp) return;
      const int warps = shape.group / kWarp, warp = thread / kWarp, lane = thread % kWarp;
      if (lane == 0) shared_sums[warp] = *this;
      __syncthreads();
      *this = shared_sums[(warp & -warps) + (lane & (warps - 1))];
      join_lanes(warps);
    } else if (shape.group > 1) {
      shared_sums[thread] = *this;
      __syncthreads();
      const int rows = shape.rows_per_block, first = thread & (rows - 1);
      acc_t next = maximum;
      for (int k = 0; k < shape.group; ++k) {
        next = larger(next, shared_sums[first + k * rows].maximum);
      }
      *this = none();
      maximum = next;
      for (int k = 0; k < shape.group; ++k) {
        OnlineSums other = shared_sums[first + k * rows];
        other.move_to(next);
        each_sum([&](acc_t OnlineSums::* s) { this->*s += other.*s; });
        if constexpr (!kPlain) keep_larger(other.best, other.argmax);
      }
    }
  }

 private:
  // Makes `next` the maximum: what is summed relative to the old one is moved along.
  __device__ void move_to(acc_t next) {
    const acc_t old = maximum;
    maximum = next;
    const acc_t factor = term(old - shift());  // 0 as long as there was nothing but -inf
    const acc_t change = where(old == -kInfinity<acc_t>, acc_t(0), old - shift());
    u_dot += u_sum * change;
    if constexpr (!kPlain) {
      dense_dot += dense_sum * change;
      z_dot = taken(factor, z_dot + sum * change);
    }
    sum *= factor;
  }

  // Of equal logits the first one counts.
  __device__ void keep_larger(acc_t z, int64_t c) {
    const bool nan = z != z, best_nan = best != best;
    const bool equal = nan ? best_nan : z == best;
    if ((nan && !best_nan) || z > best || (equal && c < argmax)) {
      best = z;
      argmax = c;
    }
  }

  template <typename F>
  static __device__ void each_sum(const F& f) {
    f(&OnlineSums::sum);
    f(&OnlineSums::u_dot);
    f(&OnlineSums::u_sum);
    if constexpr (!kPlain) {
      f(&OnlineSums::shared);
      f(&OnlineSums::dense_sum);
      f(&OnlineSums::dense_dot);
      f(&OnlineSums::z_dot);
    }
  }
};

}  // namespace
}  // namespace pyext
