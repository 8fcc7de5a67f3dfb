// The statistics of a group of rows that its loss, its entropy and its gradient are made of.
#pragma once

#include <algorithm>

#include "cpu/cross_entropy_walk.h"
#include "cpu/exponential.h"

namespace pyext {
namespace {

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
  template <typename scalar_t>
  void add_exponentials(const scalar_t* z, int64_t step, int64_t n, bool sum_logits,
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
  template <typename scalar_t>
  static Stat first_maximum(const scalar_t* z, int64_t step, int64_t n) {
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

}  // namespace
}  // namespace pyext
