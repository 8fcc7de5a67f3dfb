// A tile of cross_entropy: the statistics of its rows from its blocks, their losses, and what the
// gradient needs to know of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cpu/cross_entropy_gradient.h"
#include "cpu/cross_entropy_sums.h"

namespace pyext {
namespace {

// Logits, exponentials and gradient of rows up to this (bytes) stay in the second cache.
constexpr int64_t kShortRow = 1 << 20;

template <typename acc_t, bool columns>
class Tile : TileGradient<acc_t, columns> {
  using Gradient = TileGradient<acc_t, columns>;
  using W = Walk<acc_t, columns>;
  using Stat = typename W::Stat;
  using Sums = OnlineSums<acc_t, columns>;
  using Gradient::all_ignored, Gradient::load_logits, Gradient::load_probabilities;
  using Gradient::emit_all;
  using Gradient::keeps_exponentials_, Gradient::exponentials_of, Gradient::kept_;
  using Gradient::kRows, Gradient::kBlock, Gradient::kGroupRows, Gradient::kGroups;
  using Gradient::logit_at, Gradient::array, Gradient::offset_by, Gradient::classes_of;
  using Gradient::p_, Gradient::blocks_, Gradient::row_, Gradient::rows_, Gradient::groups_;
  using Gradient::q_, Gradient::soon, Gradient::zero_gradient, Gradient::zero_ignored_gradient;
  using Gradient::terms_, Gradient::entropy_, Gradient::lse_of, Gradient::set_terms;
  using typename Gradient::Block;

 public:
  Tile(const CrossEntropyProblem& p, bool forward_makes_gradient)
      : Gradient(p, forward_makes_gradient),
        common_masses_(smoothing_masses(p, 0, p.prior != nullptr ? acc_t(1) : acc_t(p.classes))) {}

  void forward(int64_t row, int64_t rows, const CrossEntropyResults& out) {
    begin(row, rows);
    if (out.entropy == nullptr && all_ignored()) {
      for (int64_t r = 0; r < rows; ++r) {
        write(out.loss, row + r, acc_t(0));
        write_normalizer(out, row + r, acc_t(0), acc_t(1));
      }
      if (out.gradient != nullptr) zero_gradient(out.gradient);
      return;
    }
    Sums sums[kGroups];
    const acc_t* u = array(p_.class_mass);
    const bool sums_masses = u != nullptr || p_.masked;
    const bool smooths = p_.label_smoothing != 0 || p_.row_smoothing != nullptr;
    const int64_t width = c10::elementSize(p_.dtype);
    const bool is_short = p_.classes * (2 * width + int64_t{sizeof(acc_t)}) <= kShortRow;
    const bool once = !sums_masses && p_.probabilities == nullptr && out.entropy == nullptr;
    for (int64_t b = 0; b < blocks_; ++b) {
      const auto add = [&](int64_t g, const auto* z, int64_t step) {
        const int64_t lane = g * kGroupRows;
        sums[g].add_exponentials(z + lane, step, classes_of(b), smooths && !sums_masses,
                                 keeps_exponentials_ ? exponentials_of(b, lane) : nullptr, kRows,
                                 soon(b, is_short ? out.gradient : nullptr));
      };
      // Logits of 16 bits that are needed once are widened on the way.
      if constexpr (!columns && std::is_same_v<acc_t, float>) {
        const auto* z = once ? this->template logits_where_they_lie<at::BFloat16>(b) : nullptr;
        if (z != nullptr) {
          add(0, z, kRows);
          continue;
        }
      }
      const auto z = load_logits(b);
      if (p_.probabilities != nullptr) load_probabilities(b);
      for (int64_t g = 0; g < groups_; ++g) {
        const int64_t lane = g * kGroupRows, c = b * kBlock;
        add(g, z.data, z.step);
        if (sums_masses) {
          sums[g].add_masses(z.data + lane, z.step, z.classes, offset_by(u, c),
                             offset_by(array(p_.prior), c), p_.masked);
        }
        if (p_.probabilities != nullptr) {
          sums[g].add_probabilities(z.data + lane, z.step, z.classes, q_.get() + lane,
                                    offset_by(array(p_.weight), c));
        }
        if (out.entropy != nullptr) sums[g].add_entropy(z.data + lane, z.step, z.classes);
      }
      if (out.argmax != nullptr) find_argmax(z, b);
    }
    finish(sums, out);
    if (out.gradient == nullptr) return;
    emit_all(out.gradient);
    zero_ignored_gradient(out.gradient);
  }

  void backward(int64_t row, int64_t rows, const CrossEntropyCotangents& in, void* gradient) {
    begin(row, rows);
    const bool of_statistics = in.lse != nullptr || in.entropy != nullptr;
    if (!of_statistics && all_ignored()) return zero_gradient(gradient);
    if (p_.masked) count_sharing();
    if (p_.probabilities != nullptr) sum_probabilities();
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = row + r;
      const RowMasses<acc_t> mass = masses_of(r);
      const acc_t g = in.loss ? array(in.loss)[i * in.loss_stride] : acc_t(0);
      terms_.reference[r] = array(in.saved_normalizer)[2 * i];
      terms_.sum[r] = array(in.saved_normalizer)[2 * i + 1];
      set_terms(r, mass, g, u_sum(r), dense_sum_[r],
                in.lse != nullptr ? array(in.lse)[i] : acc_t(0));
      terms_.entropy[r] = in.entropy ? array(in.entropy)[i] : acc_t(0);
      terms_.entropy_value[r] = in.entropy ? array(in.saved_entropy)[i] : acc_t(0);
    }
    entropy_ = in.entropy != nullptr;
    emit_all(gradient);
    if (!of_statistics) zero_ignored_gradient(gradient);
  }

 private:
  static acc_t write(void* to, int64_t i, acc_t value) {
    return static_cast<acc_t*>(to)[i] = value;
  }

  static void write_normalizer(const CrossEntropyResults& out, int64_t row, acc_t reference,
                               acc_t sum) {
    write(out.normalizer, 2 * row, reference);
    write(out.normalizer, 2 * row + 1, sum);
  }

  void begin(int64_t row, int64_t rows) {
    this->move_to(row, rows);
    std::fill_n(dense_sum_, kRows, acc_t(0));
    std::fill_n(best_, kRows, W::kMinusInfinity);
    std::fill_n(argmax_, kRows, int64_t(0));
  }

  RowMasses<acc_t> masses_of(int64_t r) const {
    const bool differ = p_.masked || p_.row_smoothing != nullptr;
    return row_masses(p_, row_ + r,
                      differ ? smoothing_masses(p_, row_ + r, shared(r)) : common_masses_);
  }

  // Classes that share the smoothing, or their prior.
  acc_t shared(int64_t r) const {
    if (p_.masked) return shared_[r];
    return p_.prior != nullptr ? acc_t(1) : static_cast<acc_t>(p_.classes);
  }
  acc_t u_sum(int64_t r) const {
    if (p_.masked) return u_sum_[r];
    return p_.class_mass_sum ? *array(p_.class_mass_sum) : static_cast<acc_t>(p_.classes);
  }

  // The first index of the largest logit; a NaN is larger than any number, as in torch.argmax.
  void find_argmax(const Block& z, int64_t b) {
    for (int64_t c = 0; c < z.classes; ++c) {
      for (int64_t r = 0; r < rows_; ++r) {
        const acc_t value = z.data[c * (columns ? z.step : 1) + r];
        const bool larger = value > best_[r] || (std::isnan(value) && !std::isnan(best_[r]));
        if (larger) {
          best_[r] = value;
          argmax_[r] = b * kBlock + c;
        }
      }
    }
  }

  // From sums to losses, and to the coefficients of the gradient.
  void finish(const Sums* groups, const CrossEntropyResults& out) {
    alignas(64) acc_t maximum[kRows], log_sum[kRows], u_dot[kRows], dense_dot[kRows],
        entropy[kRows];
    for (int64_t g = 0; g < groups_; ++g) {
      const Sums& s = groups[g];
      const int64_t lane = g * kGroupRows;
      // From sums relative to the reference to sums relative to the maximum.
      const Stat to_maximum = s.origin() - s.maximum;
      const Stat log_of_sum = logarithm(s.sum * exponential(to_maximum));
      W::store(maximum + lane, s.maximum);
      W::store(log_sum + lane, log_of_sum);
      W::store(u_dot + lane, s.u_dot + s.u_sum * to_maximum);
      W::store(u_sum_ + lane, s.u_sum);
      W::store(shared_ + lane, s.shared);
      W::store(dense_sum_ + lane, s.dense_sum);
      W::store(dense_dot + lane, s.dense_dot + s.dense_sum * to_maximum);
      W::store(entropy + lane, log_of_sum - (s.z_dot / s.sum + to_maximum));
      W::store(terms_.reference + lane, s.origin());
      W::store(terms_.sum + lane, s.sum);
      kept_[g] = keeps_exponentials_ && !s.moved;
    }
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t row = row_ + r;
      const RowMasses<acc_t> mass = masses_of(r);
      const auto picked = [&](const int64_t* target, acc_t pick) {
        return pick != acc_t(0) ? logit_at(r, target[row]) - maximum[r] : acc_t(0);
      };
      const RowSums<acc_t> sums{maximum[r],
                                log_sum[r],
                                u_sum(r),
                                u_dot[r],
                                dense_sum_[r],
                                dense_dot[r],
                                picked(p_.target, mass.pick_a),
                                picked(p_.target_b, mass.pick_b)};
      write(out.loss, row, row_loss(mass, sums, static_cast<acc_t>(p_.z_loss)));
      write_normalizer(out, row, terms_.reference[r], terms_.sum[r]);
      if (out.entropy != nullptr) {
        write(out.lse, row, lse_of(r));
        write(out.entropy, row, entropy[r]);
        write(out.target_log_prob, row, target_log_prob(r, sums));
        out.argmax[row] = argmax_[r];
      }
      if (out.gradient != nullptr) {
        set_terms(r, mass, acc_t(1), sums.u_sum, sums.dense_sum, acc_t(0));
        terms_.entropy[r] = terms_.entropy_value[r] = acc_t(0);
      }
    }
  }

  // log p of the target; for two targets or probabilities, the expectation over them.
  acc_t target_log_prob(int64_t r, const RowSums<acc_t>& sums) const {
    const int64_t row = row_ + r;
    if (p_.target == nullptr) return sums.dense_dot - taken(sums.dense_sum, sums.log_sum);
    const auto log_prob = [&](const int64_t* target) {
      const int64_t y = target[row];
      return y == p_.ignore_index ? acc_t(0) : logit_at(r, y) - sums.maximum - sums.log_sum;
    };
    if (p_.target_b == nullptr) return log_prob(p_.target);
    const acc_t lam = p_.row_lam ? array(p_.row_lam)[row] : static_cast<acc_t>(p_.lam);
    return taken(lam, log_prob(p_.target)) + taken(1 - lam, log_prob(p_.target_b));
  }

  void count_sharing() {
    Sums sums[kGroups];
    for (int64_t b = 0; b < blocks_; ++b) {
      const auto z = load_logits(b);
      for (int64_t g = 0; g < groups_; ++g) {
        sums[g].add_masses(z.data + g * kGroupRows, z.step, z.classes,
                           offset_by(array(p_.class_mass), b * kBlock),
                           offset_by(array(p_.prior), b * kBlock), /*masked=*/true);
      }
    }
    for (int64_t g = 0; g < groups_; ++g) {
      W::store(u_sum_ + g * kGroupRows, sums[g].u_sum);
      W::store(shared_ + g * kGroupRows, sums[g].shared);
    }
  }

  void sum_probabilities() {
    Sums sums[kGroups];
    for (int64_t b = 0; b < blocks_; ++b) {
      load_probabilities(b);
      for (int64_t g = 0; g < groups_; ++g) {
        const acc_t* q = q_.get() + g * kGroupRows;
        sums[g].add_probabilities(q, kRows, classes_of(b), q,
                                  offset_by(array(p_.weight), b * kBlock));
      }
    }
    for (int64_t g = 0; g < groups_; ++g) {
      W::store(dense_sum_ + g * kGroupRows, sums[g].dense_sum);
    }
  }

  const Masses<acc_t> common_masses_;  // of all rows, unless these differ
  alignas(64) acc_t u_sum_[kRows], shared_[kRows], dense_sum_[kRows];
  acc_t best_[kRows];
  int64_t argmax_[kRows];
};

}  // namespace
}  // namespace pyext
