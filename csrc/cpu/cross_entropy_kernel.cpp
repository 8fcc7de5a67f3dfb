// Cross-entropy on the CPU: rows are cut into tiles, each tile is walked in blocks that stay in
// cache. A tile is one row whose classes are contiguous (or gathered), or up to 64 neighbouring
// rows walked class by class, a vector of rows at a time: for a strided class axis and few classes.
// Tiles are independent, so the result has the same bits on any number of threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>

#include "cpu/cross_entropy_memory.h"
#include "cpu/cross_entropy_rows.h"
#include "cross_entropy.h"

namespace pyext {
namespace {

constexpr int64_t kFewClasses = 112;    // fewer do not fill vectors along a row
constexpr int64_t kShortRow = 1 << 16;  // classes; logits, exponentials and gradient fit in L2
constexpr int64_t kElementsPerTask = 1 << 15;

// The arithmetic of a tile, on the blocks that TileMemory brings and takes away.
template <typename acc_t, bool columns>
class Tile : TileMemory<acc_t, columns> {
  using Memory = TileMemory<acc_t, columns>;
  using W = Walk<acc_t, columns>;
  using Stat = typename W::Stat;
  using Sums = OnlineSums<acc_t, columns>;
  using Block = typename Memory::Block;
  using Memory::all_ignored, Memory::load_logits, Memory::load_probabilities, Memory::logit_at;
  using Memory::array, Memory::offset_by, Memory::classes_of, Memory::ignored;
  using Memory::kRows, Memory::kBlock, Memory::kBlockSize, Memory::kPadding;
  using Memory::p_, Memory::plain_logits_, Memory::blocks_, Memory::row_, Memory::rows_;
  using Memory::q_, Memory::d_, Memory::soon, Memory::offset_;
  using Memory::written_in_place, Memory::store_gradient, Memory::zero_gradient;
  using Memory::zero_ignored_gradient;
  static constexpr int64_t kGroupRows = columns ? W::kSize : 1;
  static constexpr int64_t kGroups = kRows / kGroupRows;

 public:
  // The exponentials of a tile are kept from the sums to the gradient where both are made at once
  // and nothing else is needed for it.
  Tile(const CrossEntropyProblem& p, bool forward_makes_gradient)
      : Memory(p),
        keeps_exponentials_(forward_makes_gradient && plain_logits_ && p.class_mass == nullptr &&
                            !p.masked && p.target != nullptr),
        common_masses_(smoothing_masses(p, 0, p.prior != nullptr ? acc_t(1) : acc_t(p.classes))) {
    if (keeps_exponentials_) {
      exponentials_ = make_scratch<acc_t>(blocks_ * kBlockSize + kPadding);
    }
  }

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
    for (int64_t b = 0; b < blocks_; ++b) {
      const auto z = load_logits(b);
      if (p_.probabilities != nullptr) load_probabilities(b);
      for (int64_t g = 0; g < groups_; ++g) {
        const int64_t lane = g * kGroupRows, c = b * kBlock;
        sums[g].add_exponentials(
            z.data + lane, z.step, z.classes, smooths && !sums_masses,
            keeps_exponentials_ ? exponentials_.get() + b * kBlockSize + lane : nullptr, kRows,
            soon(b, p_.classes <= kShortRow ? out.gradient : nullptr));
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
    groups_ = (rows + kGroupRows - 1) / kGroupRows;
    entropy_ = false;
    std::fill_n(kept_, kGroups, false);
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

  void emit_all(void* gradient) {
    const bool needs_logits = !std::all_of(kept_, kept_ + groups_, [](bool kept) { return kept; });
    for (int64_t b = 0; b < blocks_; ++b) {
      const Block z = needs_logits ? load_logits(b) : Block{nullptr, kRows, classes_of(b)};
      if (p_.probabilities != nullptr) load_probabilities(b);
      emit(b, z, gradient);
    }
  }

  // The gradient of block b, formed in the arithmetic type, then rounded and stored once.
  void emit(int64_t b, const Block& z, void* gradient) {
    const int64_t n = z.classes, first = b * kBlock;
    if (kept_[0] && emit_rounded(exponentials_.get() + b * kBlockSize, first, n, gradient)) return;
    acc_t* const in_place = written_in_place(gradient, b);
    acc_t* d = in_place != nullptr ? in_place : d_.get();
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t lane = g * kGroupRows;
      const BlockInputs<acc_t> in{kept_[g] ? exponentials_.get() + b * kBlockSize + lane : nullptr,
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

  // As emit, for a row of bfloat16 that is formed from its exponentials alone: the values
  // are rounded in registers. False where that is not the case at hand.
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

  const bool keeps_exponentials_;
  const Masses<acc_t> common_masses_;  // of all rows, unless these differ
  Scratch<acc_t> exponentials_;
  int64_t groups_ = 0;
  bool entropy_ = false;
  bool kept_[kGroups] = {};  // the exponentials of this group of rows serve the gradient
  GradientTerms<acc_t, kRows> terms_;
  alignas(64) acc_t u_sum_[kRows], shared_[kRows], dense_sum_[kRows];
  acc_t pick_a_[kRows], pick_b_[kRows], best_[kRows];
  int64_t argmax_[kRows];
};

// Calls f(tile, first row, rows) for every tile. Tiles never cross the end of the innermost axis.
template <typename acc_t, bool columns, typename F>
void for_each_tile(const CrossEntropyProblem& p, bool forward_makes_gradient, const F& f) {
  const int64_t inner = columns ? p.layout.sizes[p.layout.dims - 1] : 1;
  const int64_t per_run = columns ? (inner + kTileRows - 1) / kTileRows : 1;
  const int64_t tiles = p.rows / inner * per_run;
  const int64_t elements = p.classes * (columns ? std::min(inner, kTileRows) : 1);
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / elements);
  at::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    Tile<acc_t, columns> tile(p, forward_makes_gradient);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % per_run * kTileRows;
      if (columns) {
        f(tile, i / per_run * inner + first, std::min(kTileRows, inner - first));
      } else {
        f(tile, i, int64_t{1});
      }
    }
  });
}

bool walks_columns(const CrossEntropyProblem& p) {
  const auto& layout = p.layout;
  if (layout.dims == 0 || layout.sizes[layout.dims - 1] < 8) return false;
  const int64_t class_stride = layout.class_stride[RowLayout::kInput];
  const int64_t row_stride = layout.strides[RowLayout::kInput][layout.dims - 1];
  return p.classes <= kFewClasses || (class_stride != 1 && row_stride == 1);
}

template <typename F>
void run(const CrossEntropyProblem& p, bool forward_makes_gradient, const F& f) {
  const bool columns = walks_columns(p);
  if (p.dtype == at::kDouble) {
    columns ? for_each_tile<double, true>(p, forward_makes_gradient, f)
            : for_each_tile<double, false>(p, forward_makes_gradient, f);
  } else {
    columns ? for_each_tile<float, true>(p, forward_makes_gradient, f)
            : for_each_tile<float, false>(p, forward_makes_gradient, f);
  }
}

void cross_entropy_kernel(const CrossEntropyProblem& p, const CrossEntropyResults& out) {
  run(p, out.gradient != nullptr,
      [&](auto& tile, int64_t row, int64_t rows) { tile.forward(row, rows, out); });
}

void cross_entropy_backward_kernel(const CrossEntropyProblem& p, const CrossEntropyCotangents& in,
                                   void* gradient) {
  run(p, false,
      [&](auto& tile, int64_t row, int64_t rows) { tile.backward(row, rows, in, gradient); });
}

const RegisterKernel forward(cross_entropy_stub, at::kCPU, &cross_entropy_kernel);
const RegisterKernel backward(cross_entropy_backward_stub, at::kCPU,
                              &cross_entropy_backward_kernel);

}  // namespace
}  // namespace pyext
