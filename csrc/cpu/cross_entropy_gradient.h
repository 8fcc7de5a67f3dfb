// The gradient of cross_entropy from the statistics of its rows.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/cross_entropy_memory.h"
#include "cpu/cross_entropy_walk.h"
#include "cpu/exponential.h"

namespace pyext {
namespace {

// How far ahead of the values the cache lines of a gradient are claimed (elements).
constexpr int64_t kWriteAhead = 512;

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

#if defined(CPU_CAPABILITY_AVX512)
// As rounded_gradient_block for whole vectors, of which it returns the number of values, on
// processors that round to bfloat16 themselves: half the time. Denormal results become 0.
__attribute__((target("avx512bf16"))) inline int64_t rounded_by_processor(const float* exponentials,
                                                                          int64_t n, float factor,
                                                                          float off,
                                                                          at::BFloat16* out) {
  const __m512 factors = _mm512_set1_ps(factor), offs = _mm512_set1_ps(off);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m512 low = _mm512_fmsub_ps(_mm512_loadu_ps(exponentials + i), factors, offs);
    const __m512 high = _mm512_fmsub_ps(_mm512_loadu_ps(exponentials + i + 16), factors, offs);
    const __m512bh rounded = _mm512_cvtne2ps_pbh(high, low);
    std::memcpy(out + i, &rounded, sizeof(rounded));
    __builtin_prefetch(out + i + 2 * kWriteAhead, /*write=*/1);
  }
  return i;
}
#endif

// d loss / d z for n classes of one row from their exponentials alone, rounded as it is formed.
inline void rounded_gradient_block(const float* exponentials, int64_t n, float factor, float off,
                                   at::BFloat16* out) {
  using Vec = at::vec::Vectorized<float>;
  using Rounded = at::vec::Vectorized<at::BFloat16>;
  const Vec factors(factor), offs(off);
  const auto rounded = [&](const float* e) {
    return at::vec::convert_from_float<at::BFloat16>(
        at::vec::fmsub(Vec::loadu(e), factors, offs),
        at::vec::fmsub(Vec::loadu(e + Vec::size()), factors, offs));
  };
  int64_t i = 0;
#if defined(CPU_CAPABILITY_AVX512)
  static const bool rounds = __builtin_cpu_supports("avx512bf16") != 0;
  if (rounds) i = rounded_by_processor(exponentials, n, factor, off, out);
#endif
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

// The gradient of a tile: first the coefficients of its rows are set, then its blocks are formed
// and taken away.
template <typename acc_t, bool columns>
class TileGradient : protected TileMemory<acc_t, columns> {
 protected:
  using Memory = TileMemory<acc_t, columns>;
  using Memory::array, Memory::offset_by, Memory::soon;
  using Memory::kRows, Memory::kBlock, Memory::kBlockSize, Memory::kPadding;
  using Memory::load_logits, Memory::load_probabilities, Memory::classes_of;
  using Memory::p_, Memory::plain_logits_, Memory::blocks_, Memory::row_, Memory::rows_;
  using Memory::q_, Memory::d_, Memory::offset_;
  using Memory::written_in_place, Memory::store_gradient;
  using typename Memory::Block;
  static constexpr int64_t kGroupRows = columns ? Walk<acc_t, columns>::kSize : 1;
  static constexpr int64_t kGroups = kRows / kGroupRows;

  // The exponentials of a tile are kept from the sums to the gradient where both are made at once
  // and nothing else is needed for it.
  TileGradient(const CrossEntropyProblem& p, bool forward_makes_gradient)
      : Memory(p),
        keeps_exponentials_(forward_makes_gradient && plain_logits_ && p.class_mass == nullptr &&
                            !p.masked && p.target != nullptr) {
    if (keeps_exponentials_) {
      exponentials_ = make_scratch<acc_t>(blocks_ * kBlockSize + kPadding);
    }
  }

  void move_to(int64_t row, int64_t rows) {
    Memory::move_to(row, rows);
    groups_ = (rows + kGroupRows - 1) / kGroupRows;
    entropy_ = false;
    std::fill_n(kept_, kGroups, false);
  }

  // Where exp(z - reference) of block b is kept, from the row of a lane on.
  acc_t* exponentials_of(int64_t b, int64_t lane) const {
    return exponentials_.get() + b * kBlockSize + lane;
  }

  acc_t lse_of(int64_t r) const { return terms_.reference[r] + logarithm(terms_.sum[r]); }

  // In double, rounded once: there is one of these per row, and its error is in every class.
  void set_terms(int64_t r, const RowMasses<acc_t>& mass, acc_t g, acc_t u_sum, acc_t dense_sum,
                 acc_t lse_cotangent) {
    const RowMasses<double> exact{mass.pick_a, mass.pick_b, mass.off, mass.dense, mass.presence};
    const double total = total_mass<double>(exact, u_sum, dense_sum);
    const acc_t lse = p_.z_loss != 0 ? lse_of(r) : acc_t(0);
    const double softmax = softmax_coefficient<double>(total, mass.presence, p_.z_loss, lse);
    terms_.factor[r] = static_cast<acc_t>((g * softmax + lse_cotangent) / terms_.sum[r]);
    terms_.off[r] = g * mass.off;
    terms_.dense[r] = g * mass.dense;
    pick_a_[r] = g * mass.pick_a;
    pick_b_[r] = g * mass.pick_b;
  }

  void emit_all(void* gradient) {
    const bool needs_logits = !std::all_of(kept_, kept_ + groups_, [](bool kept) { return kept; });
    for (int64_t b = 0; b < blocks_; ++b) {
      const Block z = needs_logits ? load_logits(b) : Block{nullptr, kRows, classes_of(b)};
      if (p_.probabilities != nullptr) load_probabilities(b);
      emit(b, z, gradient);
    }
  }

  const bool keeps_exponentials_;
  int64_t groups_ = 0;
  bool entropy_ = false;     // is part of the gradient
  bool kept_[kGroups] = {};  // the exponentials of this group of rows serve the gradient
  GradientTerms<acc_t, kRows> terms_;

 private:
  // The gradient of block b, formed in the arithmetic type, then rounded and stored once.
  void emit(int64_t b, const Block& z, void* gradient) {
    const int64_t n = z.classes, first = b * kBlock;
    if (kept_[0] && emit_rounded(exponentials_of(b, 0), first, n, gradient)) return;
    acc_t* const in_place = written_in_place(gradient, b);
    acc_t* d = in_place != nullptr ? in_place : d_.get();
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t lane = g * kGroupRows;
      const BlockInputs<acc_t> in{kept_[g] ? exponentials_of(b, lane) : nullptr,
                                  offset_by(array(p_.class_mass), first),
                                  offset_by(array(p_.weight), first),
                                  q_ != nullptr ? q_.get() + lane : nullptr,
                                  p_.masked,
                                  entropy_};
      gradient_block<acc_t, columns, kRows>(offset_by(z.data, lane), kRows, n, terms_, lane, in,
                                            soon(b, gradient), d + lane, kRows);
    }
    subtract_picks(d, first, n, p_.target, pick_a_);
    subtract_picks(d, first, n, p_.target_b, pick_b_);
    if (in_place != nullptr) return;
    if (!plain_logits_) {
      for (int64_t i = 0; i < n * kRows; ++i) {
        d[i] *= transformed_logit_derivative(z.data[i], static_cast<acc_t>(p_.logit_scale),
                                             static_cast<acc_t>(p_.softcap), p_.capped);
      }
    }
    store_gradient(d, first, n, gradient);
  }

  // As emit, for a row of bfloat16 that is formed from its exponentials alone: the values are
  // rounded in registers. False where that is not the case at hand.
  bool emit_rounded(const acc_t* e, int64_t first, int64_t n, void* gradient) {
    if constexpr (!columns && std::is_same_v<acc_t, float>) {
      const auto k = RowLayout::kGradient;
      if (p_.dtype != at::kBFloat16 || p_.layout.class_stride[k] != 1) return false;
      auto* out = static_cast<at::BFloat16*>(gradient) + offset_[k] + first;
      const acc_t factor = terms_.factor[0], off = terms_.off[0];
      rounded_gradient_block(e, n, factor, off, out);
      for (const int64_t* target : {p_.target, p_.target_b}) {
        if (target == nullptr || target[row_] < first || target[row_] >= first + n) continue;
        const int64_t c = target[row_] - first;
        acc_t d = gradient_from_exponential(e[c], factor, off);
        subtract_picks(&d, target[row_], 1, p_.target, pick_a_);
        subtract_picks(&d, target[row_], 1, p_.target_b, pick_b_);
        out[c] = d;
      }
      return true;
    }
    return false;
  }

  void subtract_picks(acc_t* d, int64_t first, int64_t n, const int64_t* target,
                      const acc_t* pick) const {
    if (target == nullptr) return;
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t c = target[row_ + r] - first;
      if (c >= 0 && c < n) d[c * kRows + r] -= pick[r];
    }
  }

  Scratch<acc_t> exponentials_;
  acc_t pick_a_[kRows], pick_b_[kRows];  // of the targets
};

}  // namespace
}  // namespace pyext
