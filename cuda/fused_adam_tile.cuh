// A tile of a parameter in the registers of a block: what its operands stand for, by the kind of
// master and the coding of moments, and how that is rounded and stored.
#pragma once

#include "fused_adam_elements.cuh"
#include "fused_adam_sums.cuh"

namespace pyext {
namespace {

constexpr int kMoments = 3;
constexpr int kPerThread = 4;
constexpr int kTile = kThreads * kPerThread;
static_assert(kThreads == kCodeBlock);  // values [k] of all threads are a block of codes
static_assert(kTile % kRandomRun == 0 && kSmallestChunk % kTile == 0);

// What the threads of a block share about a tile.
struct TileMemory {
  static constexpr int kDraws = kTile / kRandomRun * kRandomLanes;

  Philox draws[kDraws];
  uint32_t largest[kMoments][kPerThread][kThreads / kWarp];  // bits of magnitudes, by warp
};

// The largest of a warp. Magnitudes are ordered as their bits are, and NaN is above infinity.
__device__ __forceinline__ uint32_t largest_of_warp(uint32_t x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kAllLanes, x);
#else
  for (int d = kWarp / 2; d > 0; d /= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, x, d);
    x = x > other ? x : other;
  }
  return x;
#endif
}

// Moments are counted from 0: exp_avg, exp_avg_sq, max_exp_avg_sq. `T`: of the arithmetic; in
// float64 there are neither masters nor random bits nor codes.
template <typename T, typename List>
struct Tile {
  static constexpr bool kIsFloat = std::is_same_v<T, float>;
  using TileValues = Values<T, kPerThread>;
  using TileBits = Values<Bits<T>, kPerThread>;

  struct Fetched {
    TileBits param, grad, master, ema, moment[kMoments];
    float scale[kMoments][kPerThread];
  };

  Elements<kPerThread, List> elements;
  int64_t begin;
  TileMemory& memory;

  __device__ Tile(const List& list, const Place& place, int64_t tile_begin, TileMemory& shared)
      : elements(list, place.tensor, tile_begin, place.end), begin(tile_begin), memory(shared) {}

  __device__ const Record& record() const { return elements.record; }

  __device__ bool has_ema() const { return record().data[AdamTensor::kEma] != nullptr; }
  __device__ bool is_coded(int moment) const {
    const auto dtype = record().dtype[AdamTensor::kExpAvg + moment];
    return kIsFloat && (dtype == at::kChar || dtype == at::kByte);
  }
  __device__ bool is_random(int moment) const {
    const auto dtype = record().dtype[AdamTensor::kExpAvg + moment];
    return kIsFloat && record().stochastic_moments && dtype == at::kBFloat16;
  }
  __device__ bool is_random_param() const {
    return kIsFloat && record().master == AdamMaster::kStochastic;
  }
  __device__ bool needs_memory(int moments) const {
    bool result = is_random_param();
    for (int i = 0; i < moments; ++i) result = result || is_coded(i);
    return result;
  }

  // Fills the memory with what storing reads: random bits, and the largest magnitude of each block
  // of codes. A barrier must follow.
  __device__ void prepare_store(const TileValues (&moment)[kMoments], int moments, uint64_t seed,
                                uint32_t step) const {
    const int thread = static_cast<int>(threadIdx.x);
    if (is_random_param()) {
      const RandomStream stream{seed, step, record().parameter};
      for (int draw = thread; draw < TileMemory::kDraws; draw += kThreads) {
        memory.draws[draw] = stream.draw(draw_of(begin) + draw);
      }
    }
#pragma unroll
    for (int i = 0; i < kMoments; ++i) {
      if (i >= moments || !is_coded(i)) continue;
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        const float magnitude = elements.has(k) ? absolute(static_cast<float>(moment[i][k])) : 0;
        const uint32_t largest = largest_of_warp(bits_of(magnitude));
        if (thread % kWarp == 0) memory.largest[i][k][thread / kWarp] = largest;
      }
    }
  }

  __device__ Fetched fetch(int moments) const {
    const auto of = [this](int operand) { return elements.template fetch<T>(operand); };
    Fetched bits;
    bits.param = of(AdamTensor::kParam);
    bits.grad = of(AdamTensor::kGrad);
    if (kIsFloat && record().data[AdamTensor::kMaster] != nullptr) {
      bits.master = of(AdamTensor::kMaster);
    }
    if (has_ema()) bits.ema = of(AdamTensor::kEma);
#pragma unroll
    for (int i = 0; i < kMoments; ++i) {
      if (i >= moments) continue;
      bits.moment[i] = of(AdamTensor::kExpAvg + i);
      for (int k = 0; k < kPerThread; ++k) {
        const bool is_there = is_coded(i) && elements.has(k);
        bits.scale[i][k] = is_there ? scales_of(i)[k] : 0;
      }
    }
    return bits;
  }

  __device__ TileValues grad(const Fetched& bits) const {
    return elements.template values<T>(AdamTensor::kGrad, bits.grad);
  }
  __device__ TileValues ema(const Fetched& bits) const {
    return elements.template values<T>(AdamTensor::kEma, bits.ema);
  }

  __device__ TileValues moment(int i, const Fetched& bits) const {
    const int operand = AdamTensor::kExpAvg + i;
    if (!is_coded(i)) return elements.template values<T>(operand, bits.moment[i]);
    const bool is_first = record().dtype[operand] == at::kChar;
    TileValues values;
    for (int k = 0; k < kPerThread; ++k) {
      const auto code = static_cast<uint8_t>(bits.moment[i][k]);
      const float scale = bits.scale[i][k];
      values[k] = is_first
                      ? first_moment_of<float>(static_cast<int8_t>(code), first_moment_unit(scale))
                      : second_moment_of<float>(code, second_moment_unit(scale));
    }
    return values;
  }

  __device__ void store_moment(int i, TileValues values, uint64_t seed, uint32_t step) const {
    const int operand = AdamTensor::kExpAvg + i;
    const Dither dither(seed, step, record().parameter, i);
    const auto threshold = [&](int k) { return dither[begin + threadIdx.x + k * kThreads]; };
    if (is_random(i)) {
      for (int k = 0; k < kPerThread; ++k) {
        values[k] =
            float_of_bfloat16(bfloat16_stochastic(static_cast<float>(values[k]), threshold(k)));
      }
    }
    if (!is_coded(i)) return elements.store(operand, values);
    float scales[kPerThread];
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      uint32_t largest = 0;
      for (const uint32_t of_warp : memory.largest[i][k]) {
        largest = largest > of_warp ? largest : of_warp;
      }
      scales[k] = float_of(largest);
      if (threadIdx.x == 0 && elements.has(k)) scales_of(i)[k] = scales[k];
    }
    if (record().dtype[operand] == at::kChar) {
      elements.template each<int8_t>(operand, [&](int k, int8_t& code) {
        const float root = first_moment_root<float>(values[k], first_moment_factor(scales[k]));
        code = static_cast<int8_t>(first_moment_code<int32_t>(root, threshold(k)));
      });
    } else {
      elements.template each<uint8_t>(operand, [&](int k, uint8_t& code) {
        const float value = values[k];
        const float root = second_moment_root(value, second_moment_factor(scales[k]));
        code = static_cast<uint8_t>(
            second_moment_code<int32_t>(root, threshold(k), static_cast<int32_t>(bits_of(value))));
      });
    }
  }

  // The parameter in full precision.
  __device__ TileValues param(const Fetched& bits) const {
    auto values = elements.template values<T>(AdamTensor::kParam, bits.param);
    if constexpr (kIsFloat) {
      if (record().master == AdamMaster::kFloat32) {
        // Whoever wrote to the parameter since the last step is heard.
        const auto full = elements.template values<float>(AdamTensor::kMaster, bits.master);
        const auto dtype = record().dtype[AdamTensor::kParam];
        for (int k = 0; k < kPerThread; ++k) {
          values[k] = rounded_copy(dtype, full[k]) == values[k] ? full[k] : values[k];
        }
      } else if (record().master == AdamMaster::kSplit) {
        for (int k = 0; k < kPerThread; ++k) {
          values[k] =
              joined({static_cast<uint16_t>(bits.param[k]), static_cast<int16_t>(bits.master[k])});
        }
      } else if (record().master == AdamMaster::kKahan) {
        const auto lost = elements.template values<float>(AdamTensor::kMaster, bits.master);
        for (int k = 0; k < kPerThread; ++k) values[k] += lost[k];
      }
    }
    return values;
  }

  // Leaves in `values` what the next step will find.
  __device__ void store_param(TileValues& values) const {
    const auto dtype = record().dtype[AdamTensor::kParam];
    TileValues stored;
    const auto round = [&] {
      for (int k = 0; k < kPerThread; ++k) stored[k] = rounded(dtype, values[k]);
    };
    if constexpr (!kIsFloat) {
      round();
      values = stored;
    } else {
      switch (record().master) {
        case AdamMaster::kFloat32:
          elements.store(AdamTensor::kMaster, values);
          for (int k = 0; k < kPerThread; ++k) stored[k] = rounded_copy(dtype, values[k]);
          break;
        case AdamMaster::kSplit:
          elements.template each<int16_t>(AdamTensor::kMaster, [&](int k, int16_t& low) {
            const SplitFloat x = split(values[k]);
            stored[k] = float_of_bfloat16(x.high);
            low = x.low;
          });
          break;
        case AdamMaster::kKahan: {
          round();
          TileValues lost;
          for (int k = 0; k < kPerThread; ++k) lost[k] = rounded(dtype, values[k] - stored[k]);
          elements.store(AdamTensor::kMaster, lost);
          for (int k = 0; k < kPerThread; ++k) values[k] = stored[k] + lost[k];
          break;
        }
        case AdamMaster::kStochastic:
          for (int k = 0; k < kPerThread; ++k) {
            stored[k] = float_of_bfloat16(bfloat16_stochastic(values[k], random(k)));
          }
          values = stored;
          break;
        case AdamMaster::kNone:
          round();
          values = stored;
      }
    }
    elements.store(AdamTensor::kParam, stored);
  }

 private:
  __device__ float* scales_of(int moment) const {
    return static_cast<float*>(record().data[AdamTensor::kExpAvgScale + moment]) +
           begin / kCodeBlock;
  }

  __device__ uint16_t random(int k) const {
    const int element = static_cast<int>(threadIdx.x) + k * kThreads;
    return bits_in(memory.draws[draw_of(element)], element);
  }
};

}  // namespace
}  // namespace pyext
