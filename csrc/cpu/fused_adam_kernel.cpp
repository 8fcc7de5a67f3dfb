// The step of Adam on the CPU. The elements of all tensors form one line that is cut evenly among
// the threads; each tensor's share of it is walked in units whose bounds depend on the tensor
// alone, so that sums over elements have the same bits on any number of threads.
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <vector>

#include "cpu/fused_adam_block.h"
#include "cpu/fused_adam_step.h"
#include "fused_adam.h"

namespace pyext {
namespace {

constexpr int64_t kQuantum = kCodeBlock;  // elements: cuts fall on multiples of it
constexpr int64_t kUnit = 64 * kQuantum;  // elements that are walked, and summed up, at a time
constexpr int64_t kQuantaPerTask = 128;   // fewer are not worth a thread

int64_t quanta_of(const AdamTensor& t) { return (t.numel + kQuantum - 1) / kQuantum; }
int64_t units_of(const AdamTensor& t) { return (t.numel + kUnit - 1) / kUnit; }

// Calls f(tensor, first element, elements, index of the unit) for every unit of every tensor.
template <typename F>
void for_each_unit(const AdamProblem& p, const F& f) {
  std::vector<int64_t> quanta(p.tensors.size() + 1), units(p.tensors.size() + 1);
  for (size_t i = 0; i < p.tensors.size(); ++i) {
    quanta[i + 1] = quanta[i] + quanta_of(p.tensors[i]);
    units[i + 1] = units[i] + units_of(p.tensors[i]);
  }
  constexpr int64_t per_unit = kUnit / kQuantum;
  at::parallel_for(0, quanta.back(), kQuantaPerTask, [&](int64_t begin, int64_t end) {
    // The first tensor that ends behind `begin`; a unit belongs to the range in which it begins.
    size_t i = std::upper_bound(quanta.begin(), quanta.end(), begin) - quanta.begin() - 1;
    for (; i < p.tensors.size() && quanta[i] < end; ++i) {
      const AdamTensor& t = p.tensors[i];
      const int64_t skipped = std::max<int64_t>(0, begin - quanta[i]);
      for (int64_t u = (skipped + per_unit - 1) / per_unit; u < units_of(t); ++u) {
        if (quanta[i] + u * per_unit >= end) break;
        f(t, u * kUnit, std::min(kUnit, t.numel - u * kUnit), units[i] + u);
      }
    }
  });
}

int64_t count_units(const AdamProblem& p) {
  int64_t result = 0;
  for (const auto& t : p.tensors) result += units_of(t);
  return result;
}

void fused_adam_kernel(const AdamProblem& p, AdamTelemetry* telemetry) {
  std::vector<AdamTelemetry> sums(telemetry != nullptr ? count_units(p) : 0);
  for_each_unit(p, [&](const AdamTensor& t, int64_t first, int64_t count, int64_t unit) {
    AdamTelemetry* const sum = telemetry != nullptr ? &sums[unit] : nullptr;
    if (t.operands[AdamTensor::kParam].dtype == at::kDouble) {
      AdamStep<double>(p, telemetry != nullptr).run(t, first, count, sum);
    } else {
      AdamStep<float>(p, telemetry != nullptr).run(t, first, count, sum);
    }
  });
  for (const auto& sum : sums) {
    telemetry->grad_square += sum.grad_square;
    telemetry->update_square += sum.update_square;
    telemetry->param_square += sum.param_square;
    telemetry->lost += sum.lost;
  }
}

// Squares of a unit in float64, and 0 or NaN.
template <typename acc_t>
AdamNorm norm_of(const AdamOperand& grad, int64_t first, int64_t count) {
  using Vec = at::vec::Vectorized<acc_t>;
  using Wide = at::vec::Vectorized<double>;
  constexpr int kParts = Vec::size() / Wide::size();
  Wide squares[kParts];
  for (Wide& part : squares) part = Wide(0);
  Vec poisons(0);
  alignas(64) acc_t scratch[kAdamBlock];
  for (int64_t begin = first; begin < first + count; begin += kAdamBlock) {
    const int64_t n = std::min(kAdamBlock, first + count - begin);
    const acc_t* g = fetch(grad, begin, n, scratch);
    const auto add = [&](const Vec& x) {
      if constexpr (kParts == 1) {
        squares[0] = at::vec::fmadd(x, x, squares[0]);
      } else {
        const at::vec::VectorizedN<double, kParts> wide =
            at::vec::convert<double, kParts, acc_t, 1>(at::vec::VectorizedN<acc_t, 1>(x));
        for (int k = 0; k < kParts; ++k) {
          squares[k] = at::vec::fmadd(wide[k], wide[k], squares[k]);
        }
      }
      poisons = poisons + (x - x);
    };
    int64_t i = 0;
    for (; i + Vec::size() <= n; i += Vec::size()) {
      __builtin_prefetch(g + i + kAdamBlock);
      add(Vec::loadu(g + i));
    }
    if (i < n) add(Vec::loadu(g + i, static_cast<int>(n - i)));  // and zeros
  }
  AdamNorm result;
  for (int k = 0; k < kParts; ++k) {
    double lanes[Wide::size()];
    squares[k].store(lanes);
    for (const double lane : lanes) result.square_sum += lane;
  }
  acc_t lanes[Vec::size()];
  poisons.store(lanes);
  for (const acc_t lane : lanes) result.poison += lane;
  return result;
}

void fused_adam_norm_kernel(const AdamProblem& p, AdamNorm* norm) {
  std::vector<AdamNorm> sums(count_units(p));
  for_each_unit(p, [&](const AdamTensor& t, int64_t first, int64_t count, int64_t unit) {
    const auto& grad = t.operands[AdamTensor::kGrad];
    sums[unit] = grad.dtype == at::kDouble ? norm_of<double>(grad, first, count)
                                           : norm_of<float>(grad, first, count);
  });
  for (const auto& sum : sums) {
    norm->square_sum += sum.square_sum;
    norm->poison += sum.poison;
  }
}

const RegisterKernel step(fused_adam_stub, at::kCPU, &fused_adam_kernel);
const RegisterKernel norm(fused_adam_norm_stub, at::kCPU, &fused_adam_norm_kernel);

}  // namespace
}  // namespace pyext
