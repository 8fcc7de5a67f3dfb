// The step as kernels. Plain tensors, whose operands are dense and of one dtype, as with
// torch.optim.Adam, are walked 16 bytes at a time; all others in tiles.
#pragma once

#include <ATen/OpMathType.h>

#include <limits>

#include "fused_adam_tile.cuh"

namespace pyext {
namespace {

constexpr int kVectorBytes = 16;

template <typename S, int kWidth>
struct alignas(sizeof(S) * kWidth) Vector {
  S of[kWidth];
};

template <int kWidth, typename S, typename T>
__device__ __forceinline__ void plain_step(const Record& r, const AdamCoefficients<T>& c,
                                           bool zero_grad, int64_t index) {
  using V = Vector<S, kWidth>;
  const auto at = [&](int operand) { return static_cast<V*>(r.data[operand]) + index; };
  const V grad = *at(AdamTensor::kGrad);
  V param = *at(AdamTensor::kParam);
  V exp_avg = *at(AdamTensor::kExpAvg);
  V exp_avg_sq = *at(AdamTensor::kExpAvgSq);
  V max_exp_avg_sq = exp_avg_sq, zeros;
  if (c.amsgrad) max_exp_avg_sq = *at(AdamTensor::kMaxExpAvgSq);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    AdamElement<T> x{static_cast<T>(param.of[i]), static_cast<T>(exp_avg.of[i]),
                     static_cast<T>(exp_avg_sq.of[i]), static_cast<T>(max_exp_avg_sq.of[i])};
    adam_update(c, static_cast<T>(grad.of[i]), x);
    param.of[i] = static_cast<S>(x.param);
    exp_avg.of[i] = static_cast<S>(x.exp_avg);
    exp_avg_sq.of[i] = static_cast<S>(x.exp_avg_sq);
    max_exp_avg_sq.of[i] = static_cast<S>(x.max_exp_avg_sq);
    zeros.of[i] = static_cast<S>(T(0));
  }
  *at(AdamTensor::kParam) = param;
  *at(AdamTensor::kExpAvg) = exp_avg;
  *at(AdamTensor::kExpAvgSq) = exp_avg_sq;
  if (c.amsgrad) *at(AdamTensor::kMaxExpAvgSq) = max_exp_avg_sq;
  if (zero_grad) *at(AdamTensor::kGrad) = zeros;
}

template <typename S>
__global__ void __launch_bounds__(kThreads)
    plain_kernel(const __grid_constant__ StepArguments<at::opmath_type<S>, false> arguments) {
  using T = at::opmath_type<S>;
  constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(S));
  static_assert(kSmallestChunk % kWidth == 0);
  const Place place = arguments.list.place_of(blockIdx.x);
  const Record& r = arguments.list.records[place.tensor];
  __shared__ StepNumbers<T> numbers;
  arguments.read_numbers(r, numbers);
  if (numbers.skip) return;
  const AdamCoefficients<T> c = numbers.coefficients;
  const int64_t thread = threadIdx.x, tail = place.end / kWidth * kWidth;
  for (int64_t i = place.begin / kWidth + thread; i < tail / kWidth; i += kThreads) {
    plain_step<kWidth, S>(r, c, arguments.zero_grad, i);
  }
  if (tail + thread < place.end) plain_step<1, S>(r, c, arguments.zero_grad, tail + thread);
}

// In the order of AdamTelemetry.
constexpr int kTelemetry = sizeof(AdamTelemetry) / sizeof(double);

template <typename T, typename List>
__device__ __forceinline__ void tile_step(const Tile<T, List>& tile, const StepNumbers<T>& numbers,
                                          const AdamCoefficients<T>& c, uint64_t seed,
                                          bool zero_grad, bool has_telemetry,
                                          Sums<kTelemetry>& telemetry) {
  const auto& elements = tile.elements;
  const int moments = c.amsgrad ? 3 : 2;
  const auto bits = tile.fetch(moments);
  const auto grad = tile.grad(bits), old = tile.param(bits);
  Values<T, kPerThread> moment[kMoments], param, update;
#pragma unroll
  for (int i = 0; i < kMoments; ++i) {
    if (i < moments) moment[i] = tile.moment(i, bits);
  }
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    AdamElement<T> x{old[k], moment[0][k], moment[1][k], moment[2][k]};
    update[k] = adam_update(c, grad[k], x);
    param[k] = x.param;
    moment[0][k] = x.exp_avg;
    moment[1][k] = x.exp_avg_sq;
    moment[2][k] = x.max_exp_avg_sq;
  }

  const bool needs_memory = tile.needs_memory(moments);
  if (needs_memory) {
    __syncthreads();  // the tile before is done with the memory
    tile.prepare_store(moment, moments, seed, numbers.step);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kMoments; ++i) {
    if (i < moments) tile.store_moment(i, moment[i], seed, numbers.step);
  }
  tile.store_param(param);
  if (tile.has_ema()) {
    const T weight = static_cast<T>(tile.record().ema_weight);
    auto ema = tile.ema(bits);
    for (int k = 0; k < kPerThread; ++k) ema[k] += weight * (param[k] - ema[k]);
    elements.store(AdamTensor::kEma, ema);
  }
  if (zero_grad) elements.store(AdamTensor::kGrad, Values<T, kPerThread>());
  if (!has_telemetry) return;
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    if (!elements.has(k)) continue;
    const double g = static_cast<double>(grad[k]) * static_cast<double>(c.grad_factor);
    const double u = update[k], p = param[k];
    const double lost = update[k] != T(0) && param[k] == old[k] ? 1 : 0;
    telemetry.add({g * g, u * u, p * p, lost});
  }
}

// Blocks per multiprocessor: as many as registers allow without spills.
template <typename T, bool kMayBeStrided>
constexpr int kResident = kMayBeStrided || std::is_same_v<T, double> ? 2 : 3;

// `telemetry`: null, or one per block.
template <typename T, bool kMayBeStrided>
__global__ void __launch_bounds__(kThreads, kResident<T, kMayBeStrided>)
    tile_kernel(const __grid_constant__ StepArguments<T, kMayBeStrided> arguments,
                Sums<kTelemetry>* telemetry) {
  const auto& list = arguments.list;
  const Place place = list.place_of(blockIdx.x);
  __shared__ StepNumbers<T> numbers;
  __shared__ TileMemory memory;
  arguments.read_numbers(list.records[place.tensor], numbers);
  Sums<kTelemetry> sums;
  if (!numbers.skip) {
    const AdamCoefficients<T> c = numbers.coefficients;
    // Elements of a strided gradient may share memory, which others have yet to read.
    const bool zero_grad = arguments.zero_grad && !list.is_strided(place.tensor, AdamTensor::kGrad);
    for (int64_t begin = place.begin; begin < place.end; begin += kTile) {
      const Tile<T, TensorList<kMayBeStrided>> tile(list, place, begin, memory);
      tile_step(tile, numbers, c, arguments.seed, zero_grad, telemetry != nullptr, sums);
    }
  }
  if (telemetry == nullptr) return;
  sums.template join_block<kThreads>();
  if (threadIdx.x == 0) telemetry[blockIdx.x] = sums;
}

// Zeros to the strided gradients, when all of the step has read them.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    zero_grad_kernel(const __grid_constant__ StepArguments<T, true> arguments) {
  const auto& list = arguments.list;
  const Place place = list.place_of(blockIdx.x);
  if (!list.is_strided(place.tensor, AdamTensor::kGrad) || arguments.conditions.skip()) return;
  for (int64_t begin = place.begin; begin < place.end; begin += kTile) {
    const Elements<kPerThread, TensorList<true>> elements(list, place.tensor, begin, place.end);
    elements.store(AdamTensor::kGrad, Values<T, kPerThread>());
  }
}

// The squares of gradients, and 0 or NaN, in the order of AdamNorm.
constexpr int kNorm = sizeof(AdamNorm) / sizeof(double);

template <bool kMayBeStrided>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(const __grid_constant__ TensorList<kMayBeStrided> list, Sums<kNorm>* parts) {
  constexpr int kCount = kSmallestChunk / kThreads;  // enough loads under way, if of 2 bytes each
  const Place place = list.place_of(blockIdx.x);
  double square_sum = 0;
  bool finite = true;
  with_dtype(list.records[place.tensor].dtype[AdamTensor::kGrad], [&](auto zero) {
    using T = at::opmath_type<decltype(zero)>;
    for (int64_t begin = place.begin; begin < place.end; begin += kCount * kThreads) {
      const Elements<kCount, TensorList<kMayBeStrided>> elements(list, place.tensor, begin,
                                                                 place.end);
      Values<T, kCount> grad;
      elements.template each<const decltype(zero)>(
          AdamTensor::kGrad, [&](int k, const auto& memory) { grad[k] = static_cast<T>(memory); });
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const double g = grad[k];
        square_sum += g * g;
        finite = finite && grad[k] - grad[k] == T(0);
      }
    }
  });
  Sums<kNorm> sums{{square_sum, finite ? 0.0 : std::numeric_limits<double>::quiet_NaN()}};
  sums.template join_block<kThreads>();
  if (threadIdx.x == 0) parts[blockIdx.x] = sums;
}

}  // namespace
}  // namespace pyext
