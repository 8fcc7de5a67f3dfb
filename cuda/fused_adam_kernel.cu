// The step of Adam on CUDA: which tensors go with which kernel, and the launches. Nothing waits for
// the device: what only it knows (scale, norm, counts, learning rate) is read by the kernels.
#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "fused_adam_step.cuh"

namespace pyext {
namespace {

using Tensors = std::vector<const AdamTensor*>;

// One per variant of the kernels.
enum Variant {
  kPlainFloat,
  kPlainDouble,
  kPlainBFloat16,
  kPlainHalf,
  kTiledFloat,
  kTiledDouble,
  kStridedFloat,
  kStridedDouble,
  kVariants
};

bool is_strided(const AdamTensor& tensor) {
  return std::any_of(tensor.operands, tensor.operands + kStridedOperands,
                     [](const AdamOperand& operand) { return operand.strided != nullptr; });
}

// For tensors that are not strided.
bool is_plain(const AdamTensor& tensor, bool amsgrad) {
  const auto dtype = tensor.operands[AdamTensor::kParam].dtype;
  const int last = amsgrad ? AdamTensor::kMaxExpAvgSq : AdamTensor::kExpAvgSq;
  bool plain = tensor.master == AdamMaster::kNone && !tensor.stochastic_moments &&
               tensor.operands[AdamTensor::kEma].data == nullptr;
  for (int k = 0; k <= last; ++k) {
    const auto& operand = tensor.operands[k];
    const auto address = reinterpret_cast<uintptr_t>(operand.data);
    plain = plain && operand.dtype == dtype && address % kVectorBytes == 0;
  }
  return plain;
}

Variant variant_of(const AdamProblem& problem, const AdamTensor& tensor, bool telemetry) {
  const auto dtype = tensor.operands[AdamTensor::kParam].dtype;
  const bool is_double = dtype == at::kDouble;
  if (is_strided(tensor)) return is_double ? kStridedDouble : kStridedFloat;
  if (telemetry || !is_plain(tensor, problem.groups[tensor.group].options.amsgrad)) {
    return is_double ? kTiledDouble : kTiledFloat;
  }
  return is_double                ? kPlainDouble
         : dtype == at::kBFloat16 ? kPlainBFloat16
         : dtype == at::kHalf     ? kPlainHalf
                                  : kPlainFloat;
}

// Calls launch(arguments, blocks) as often as it takes for all tensors.
template <typename Arguments, typename Add, typename Launch>
void in_launches(const Tensors& tensors, Arguments arguments, const Add& add,
                 const Launch& launch) {
  const auto flush = [&] {
    if (arguments.blocks() > 0) launch(arguments, arguments.blocks());
    arguments.clear();
  };
  for (const AdamTensor* tensor : tensors) {
    if (add(arguments, *tensor)) continue;
    flush();
    add(arguments, *tensor);
  }
  flush();
}

class Step {
 public:
  Step(const AdamProblem& problem, AdamTelemetry* telemetry)
      : problem_(problem),
        chunk_(chunk_size(problem)),
        stream_(c10::cuda::getCurrentCUDAStream()),
        telemetry_(telemetry) {}

  void run() {
    std::array<Tensors, kVariants> tensors;
    int64_t blocks = 0;
    for (const auto& tensor : problem_.tensors) {
      if (tensor.numel == 0) continue;
      tensors[variant_of(problem_, tensor, telemetry_ != nullptr)].push_back(&tensor);
      blocks += (tensor.numel + chunk_ - 1) / chunk_;
    }
    if (telemetry_ != nullptr) parts_.emplace(blocks);
    plain<float>(tensors[kPlainFloat]);
    plain<double>(tensors[kPlainDouble]);
    plain<at::BFloat16>(tensors[kPlainBFloat16]);
    plain<at::Half>(tensors[kPlainHalf]);
    tiled<float, false>(tensors[kTiledFloat]);
    tiled<double, false>(tensors[kTiledDouble]);
    tiled<float, true>(tensors[kStridedFloat]);
    tiled<double, true>(tensors[kStridedDouble]);
    if (telemetry_ != nullptr) parts_->finish(/*adds=*/true, &telemetry_->grad_square);
  }

 private:
  template <typename T, bool kMayBeStrided, typename Launch>
  void in_launches_of(const Tensors& tensors, const Launch& launch) const {
    if (tensors.empty()) return;
    const auto add = [this](auto& arguments, const AdamTensor& tensor) {
      return arguments.add(problem_, tensor);
    };
    in_launches(tensors, StepArguments<T, kMayBeStrided>(problem_, chunk_), add, launch);
  }

  template <typename scalar_t>
  void plain(const Tensors& tensors) const {
    in_launches_of<at::opmath_type<scalar_t>, false>(
        tensors, [this](const auto& arguments, uint32_t blocks) {
          plain_kernel<scalar_t><<<blocks, kThreads, 0, stream_>>>(arguments);
          C10_CUDA_KERNEL_LAUNCH_CHECK();
        });
  }

  template <typename T, bool kMayBeStrided>
  void tiled(const Tensors& tensors) {
    in_launches_of<T, kMayBeStrided>(tensors, [this](const auto& arguments, uint32_t blocks) {
      tile_kernel<T, kMayBeStrided>
          <<<blocks, kThreads, 0, stream_>>>(arguments, parts_ ? parts_->take(blocks) : nullptr);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
      if constexpr (kMayBeStrided) {
        if (!problem_.zero_grad) return;
        zero_grad_kernel<T><<<blocks, kThreads, 0, stream_>>>(arguments);
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      }
    });
  }

  const AdamProblem& problem_;
  const int64_t chunk_;
  const c10::cuda::CUDAStream stream_;
  AdamTelemetry* const telemetry_;
  std::optional<PartialSums<kTelemetry>> parts_;
};

void fused_adam_kernel(const AdamProblem& problem, AdamTelemetry* telemetry) {
  Step(problem, telemetry).run();
}

template <bool kMayBeStrided>
void norm_of(const Tensors& tensors, int64_t chunk, PartialSums<kNorm>& parts) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const auto add = [](auto& list, const AdamTensor& tensor) { return list.add(tensor); };
  in_launches(
      tensors, TensorList<kMayBeStrided>(chunk), add, [&](const auto& list, uint32_t blocks) {
        norm_kernel<kMayBeStrided><<<blocks, kThreads, 0, stream>>>(list, parts.take(blocks));
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
}

void fused_adam_norm_kernel(const AdamProblem& problem, AdamNorm* norm) {
  const int64_t chunk = chunk_size(problem);
  Tensors dense, strided;
  int64_t blocks = 0;
  for (const auto& tensor : problem.tensors) {
    if (tensor.numel == 0) continue;
    const bool is_dense = tensor.operands[AdamTensor::kGrad].strided == nullptr;
    (is_dense ? dense : strided).push_back(&tensor);
    blocks += (tensor.numel + chunk - 1) / chunk;
  }
  PartialSums<kNorm> parts(blocks);
  norm_of<false>(dense, chunk, parts);
  norm_of<true>(strided, chunk, parts);
  parts.finish(/*adds=*/false, &norm->square_sum);
}

const RegisterKernel step(fused_adam_stub, at::kCUDA, &fused_adam_kernel);
const RegisterKernel norm(fused_adam_norm_stub, at::kCUDA, &fused_adam_norm_kernel);

}  // namespace
}  // namespace pyext
