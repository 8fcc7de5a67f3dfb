// One pass over blocks of logits, for a group of rows at a time: either one row whose classes are
// contiguous (a vector holds neighbouring classes), or as many rows as a vector has lanes, whose
// classes are `step` apart (a vector holds one class of neighbouring rows). The same loops serve
// both; only how a vector becomes a statistic of its row differs.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "cpu/exponential.h"
#include "cross_entropy.h"

namespace pyext {
namespace {

// How far ahead of the values the cache lines of a gradient are claimed (elements).
constexpr int64_t kWriteAhead = 512;

template <typename acc_t, bool columns>
struct Walk {
  using Vec = at::vec::Vectorized<acc_t>;
  using Stat = std::conditional_t<columns, Vec, acc_t>;
  static constexpr int64_t kSize = Vec::size();
  static constexpr acc_t kMinusInfinity = -std::numeric_limits<acc_t>::infinity();

  static Stat sum(const Vec& v) {
    if constexpr (columns) {
      return v;
    } else {
      return at::vec::vec_reduce_all<acc_t>([](Vec a, Vec b) { return a + b; }, v);
    }
  }
  static Stat max(const Vec& v) {
    if constexpr (columns) {
      return v;
    } else {
      return at::vec::vec_reduce_all<acc_t>([](Vec a, Vec b) { return larger(a, b); }, v);
    }
  }
  // Not at::vec::maximum: a NaN need not survive here, the sum of exponentials finds it.
  static Vec larger(const Vec& a, const Vec& b) { return at::vec::clamp_min(a, b); }
  static acc_t larger(acc_t a, acc_t b) { return a < b ? b : a; }

  // The value of a per-class array for class i of the block.
  static Vec per_class(const acc_t* values, int64_t i, int64_t lanes) {
    if constexpr (columns) return Vec(values[i]);
    return lanes == kSize ? Vec::loadu(values + i)
                          : Vec::set(Vec(0), Vec::loadu(values + i, lanes), lanes);
  }

  static Stat load(const acc_t* values) {
    if constexpr (columns) return Vec::loadu(values);
    return *values;
  }
  static void store(acc_t* to, const Stat& value) {
    if constexpr (columns) {
      value.store(to);
    } else {
      *to = value;
    }
  }
  static bool any(bool condition) { return condition; }
  static bool any(const Vec& condition) {
    return condition.zero_mask() != (1 << kSize) - 1;  // a lane whose bits are not all 0
  }

  // Calls f(i, vector, lanes) over n classes from z; lanes beyond the last class hold -inf.
  template <typename F>
  static void each(const acc_t* z, int64_t step, int64_t n, F&& f) {
    if constexpr (columns) {
      for (int64_t i = 0; i < n; ++i) f(i, Vec::loadu(z + i * step), kSize);
    } else {
      int64_t i = 0;
      for (; i + kSize <= n; i += kSize) f(i, Vec::loadu(z + i), kSize);
      if (i < n) {
        const int64_t lanes = n - i;
        f(i, Vec::set(Vec(kMinusInfinity), Vec::loadu(z + i, lanes), lanes), lanes);
      }
    }
  }
  // Where f's result for class i goes.
  static acc_t* at(acc_t* base, int64_t step, int64_t i) { return base + (columns ? i * step : i); }
  // Only the lanes that hold classes count.
  static Vec valid(const Vec& v, int64_t lanes) {
    return lanes == kSize ? v : Vec::set(Vec(0), v, lanes);
  }
};

// Memory that will be read, and written, while the walk stands at class 0; later classes follow at
// `width` bytes. The hardware's own prefetch ends with each page, and a page is soon read.
struct Soon {
  const char* read;
  const char* written;  // or null
  int64_t width;

  void fetch(int64_t i) const { __builtin_prefetch(read + i * width, /*write=*/0, /*locality=*/0); }
  void claim(int64_t i) const {
    if (written != nullptr) __builtin_prefetch(written + i * width, /*write=*/1);
  }
};

// The statistics of a group of rows, updated block by block (after Milakov and Gimelshein 2018,
// "Online normalizer calculation for softmax").
//
// Exponentials are taken of z - reference, where the reference is the largest of the first few
// logits. It need not be the maximum, only near enough that nothing overflows and nothing that
// counts underflows; so a block is read once, and again only where a logit exceeds the reference by
// more than kSlack.
template <typename acc_t, bool columns>
struct OnlineSums {
  using W = Walk<acc_t, columns>;
  using Vec = typename W::Vec;
  using Stat = typename W::Stat;
  static constexpr acc_t kSlack = 40;  // exp(40) is 2e17: room for 1e21 of them in a float

  Stat reference = Stat(W::kMinusInfinity);  // while no finite logit was seen, 0 stands for it
  Stat maximum = Stat(W::kMinusInfinity);
  Stat sum = Stat(0);        // sum exp(z - reference)
  Stat z_dot = Stat(0);      // sum exp(z - reference) (z - reference)
  Stat u_dot = Stat(0);      // sum u (z - reference)
  Stat u_sum = Stat(0);      // sum u, of the classes so far
  Stat shared = Stat(0);     // masked: how many classes, or how much prior, share the smoothing
  Stat dense_sum = Stat(0);  // sum w q
  Stat dense_dot = Stat(0);  // sum w q (z - reference)
  bool started = false;
  bool moved = false;  // blocks were summed relative to another reference
  bool summed = false;

  // Adds a block, storing exp(z - reference) where `exponentials` is not null, and fetching what
  // comes next into the cache.
  void add_exponentials(const acc_t* z, int64_t step, int64_t n, bool sum_logits,
                        acc_t* exponentials, int64_t exponentials_step, const Soon& soon) {
    if (!started) {
      reference = first_maximum(z, step, n);
      started = true;
    }
    for (;;) {
      const Vec origins(origin());
      Vec e_sum(0), d_sum(0), largest(W::kMinusInfinity);
      W::each(z, step, n, [&](int64_t i, const Vec& v, int64_t lanes) {
        const Vec d = v - origins;
        const Vec e = exponential(d);
        if (exponentials != nullptr) e.store(W::at(exponentials, exponentials_step, i));
        largest = W::larger(v, largest);
        e_sum = e_sum + e;
        d_sum = d_sum + W::valid(d, lanes);
        if constexpr (!columns) {
          soon.fetch(i);
          soon.claim(i);
        }
      });
      maximum = W::larger(W::max(largest), maximum);
      if (W::any(maximum > reference + Stat(kSlack))) {
        move_reference();
        continue;
      }
      sum = sum + W::sum(e_sum);
      summed = true;
      if (sum_logits) {
        u_dot = u_dot + W::sum(d_sum);
        u_sum = u_sum + Stat(static_cast<acc_t>(n));
      }
      return;
    }
  }

  // What exponentials are taken relative to.
  Stat origin() const { return where(reference == nothing(), Stat(0), reference); }

  // As the unweighted sum of logits above, for masses that differ from class to class or leave out
  // infinite logits.
  void add_masses(const acc_t* z, int64_t step, int64_t n, const acc_t* u, const acc_t* prior,
                  bool masked) {
    const Vec origins(origin()), nothing(W::kMinusInfinity);
    Vec dot(0), total(0), sharing(0);
    W::each(z, step, n, [&](int64_t i, const Vec& v, int64_t lanes) {
      const Vec ones(1);
      const Vec mass = u != nullptr ? W::per_class(u, i, lanes) : ones;
      const Vec share = prior != nullptr ? W::per_class(prior, i, lanes) : ones;
      const Vec term = where(mass == Vec(0), Vec(0), mass * (v - origins));  // also 0 x inf
      const auto left_out = v == nothing;
      dot = dot + W::valid(masked ? where(left_out, Vec(0), term) : term, lanes);
      total = total + W::valid(masked ? where(left_out, Vec(0), mass) : mass, lanes);
      sharing = sharing + W::valid(where(left_out, Vec(0), share), lanes);
    });
    u_dot = u_dot + W::sum(dot);
    u_sum = u_sum + W::sum(total);
    shared = shared + W::sum(sharing);
  }

  // A probability of 0 takes nothing, also from an infinite logit.
  void add_probabilities(const acc_t* z, int64_t step, int64_t n, const acc_t* q,
                         const acc_t* weight) {
    const Vec origins(origin());
    Vec dot(0), total(0);
    W::each(z, step, n, [&](int64_t i, const Vec& v, int64_t lanes) {
      Vec mass = W::valid(Vec::loadu(q + (columns ? i * step : i), lanes), lanes);
      if (weight != nullptr) mass = mass * W::per_class(weight, i, lanes);
      total = total + mass;
      dot = dot + where(mass == Vec(0), Vec(0), mass * (v - origins));
    });
    dense_sum = dense_sum + W::sum(total);
    dense_dot = dense_dot + W::sum(dot);
  }

  void add_entropy(const acc_t* z, int64_t step, int64_t n) {
    const Vec origins(origin());
    Vec dot(0);
    W::each(z, step, n, [&](int64_t, const Vec& v, int64_t) {
      const Vec d = v - origins;
      const Vec e = exponential(d);
      dot = dot + where(e == Vec(0), Vec(0), e * d);
    });
    z_dot = z_dot + W::sum(dot);
  }

 private:
  static Stat nothing() { return Stat(W::kMinusInfinity); }

  // The largest of the first logits: of a whole block of columns, of four vectors of a row.
  static Stat first_maximum(const acc_t* z, int64_t step, int64_t n) {
    Vec result(W::kMinusInfinity);
    W::each(z, step, columns ? n : std::min(n, 4 * W::kSize),
            [&](int64_t, const Vec& v, int64_t) { result = W::larger(v, result); });
    return W::max(result);
  }

  // To the maximum, also from -inf; what was summed so far follows.
  void move_reference() {
    const Stat next = W::larger(maximum, reference);
    const Stat change = origin() - next;
    const Stat rescale = where(reference == nothing(), Stat(0), exponential(change));
    z_dot = (z_dot + sum * change) * rescale;
    sum = sum * rescale;
    u_dot = u_dot + u_sum * change;
    dense_dot = dense_dot + dense_sum * change;
    reference = next;
    moved = moved || summed;
  }
};

// The coefficients of the gradient in z of up to kRows rows, in the order of the lanes.
template <typename acc_t, int64_t kRows>
struct GradientTerms {
  alignas(64) acc_t factor[kRows];         // of exp(z - reference)
  alignas(64) acc_t off[kRows];            // of -u
  alignas(64) acc_t dense[kRows];          // of -w q
  alignas(64) acc_t entropy[kRows];        // of -p (log p + H), the derivative of the entropy H
  alignas(64) acc_t entropy_value[kRows];  // H
  alignas(64) acc_t reference[kRows];      // p = exp(z - reference) / sum
  alignas(64) acc_t sum[kRows];
};

// What the gradient of a block depends on beside the terms of its rows.
template <typename acc_t>
struct BlockInputs {
  const acc_t* exponentials = nullptr;  // exp(z - reference) if they were kept
  const acc_t* u = nullptr;             // null: ones
  const acc_t* weight = nullptr;        // null: ones
  const acc_t* q = nullptr;             // null: no probabilities
  bool masked = false;
  bool entropy = false;
};

// d loss / d z for n classes of one row from their exponentials alone, rounded as it is formed.
template <typename scalar_t>
void rounded_gradient_block(const float* exponentials, int64_t n, float factor, float off,
                            scalar_t* out) {
  using Vec = at::vec::Vectorized<float>;
  using Rounded = at::vec::Vectorized<scalar_t>;
  const Vec factors(factor), offs(off);
  const auto rounded = [&](const float* e) {
    return at::vec::convert_from_float<scalar_t>(
        at::vec::fmsub(Vec::loadu(e), factors, offs),
        at::vec::fmsub(Vec::loadu(e + Vec::size()), factors, offs));
  };
  int64_t i = 0;
  for (; i + Rounded::size() <= n; i += Rounded::size()) {
    rounded(exponentials + i).store(out + i);
    __builtin_prefetch(out + i + 2 * kWriteAhead, /*write=*/1);
  }
  if (i < n) rounded(exponentials + i).store(out + i, static_cast<int>(n - i));
}

// One value of the above, by the same instructions.
inline float gradient_from_exponential(float exponential, float factor, float off) {
  using Vec = at::vec::Vectorized<float>;
  float lanes[Vec::size()];
  at::vec::fmsub(Vec(exponential), Vec(factor), Vec(off)).store(lanes);
  return lanes[0];
}

// d loss / d z for n classes of the group of rows that begins at lane `lane`.
template <typename acc_t, bool columns, int64_t kRows>
void gradient_block(const acc_t* z, int64_t step, int64_t n,
                    const GradientTerms<acc_t, kRows>& terms, int64_t lane,
                    const BlockInputs<acc_t>& in, const Soon& soon, acc_t* out, int64_t out_step) {
  using W = Walk<acc_t, columns>;
  using Vec = typename W::Vec;
  using Stat = typename W::Stat;
  const auto of_rows = [lane](const acc_t* values) { return W::load(values + lane); };
  const Vec factors(of_rows(terms.factor)), offs(of_rows(terms.off));
  if (in.exponentials != nullptr) {
    W::each(in.exponentials, step, n, [&](int64_t i, const Vec& e, int64_t lanes) {
      at::vec::fmsub(e, factors, offs).store(W::at(out, out_step, i), static_cast<int>(lanes));
      if constexpr (!columns) soon.claim(i + kWriteAhead);
    });
    return;
  }
  const Stat sum = of_rows(terms.sum);
  const Vec references(of_rows(terms.reference)), log_sums(logarithm(sum)), sums(sum);
  const Vec dense(of_rows(terms.dense)), entropy(of_rows(terms.entropy));
  const Vec entropy_value(of_rows(terms.entropy_value));
  W::each(z, step, n, [&](int64_t i, const Vec& v, int64_t lanes) {
    const Vec log_e = v - references;
    const Vec e = exponential(log_e);
    Vec mass = in.u != nullptr ? offs * W::per_class(in.u, i, lanes) : offs;
    if (in.masked) mass = where(v == Vec(W::kMinusInfinity), Vec(0), mass);
    Vec d = at::vec::fmsub(e, factors, mass);
    if (in.entropy) {
      const Vec p = e / sums;
      const Vec log_p = log_e - log_sums;
      d = d - where(p == Vec(0), Vec(0), entropy * p * (log_p + entropy_value));
    }
    if (in.q != nullptr) {
      Vec share = dense * Vec::loadu(in.q + (columns ? i * step : i), lanes);
      if (in.weight != nullptr) share = share * W::per_class(in.weight, i, lanes);
      d = d - share;
    }
    d.store(W::at(out, out_step, i), static_cast<int>(lanes));
    if constexpr (!columns) {
      soon.fetch(i);
      soon.claim(i + kWriteAhead);
    }
  });
}

}  // namespace
}  // namespace pyext
