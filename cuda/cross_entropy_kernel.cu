// Cross-entropy on CUDA: the forward pass reads each logit once and keeps two numbers per row, the
// backward pass reads it once more and writes its gradient. Formulas are in cross_entropy.h and
// cross_entropy_row.cuh, the way rows are laid over threads in cross_entropy_walk.cuh.
//
// Each pass comes in three variants per dtype: 16 bytes at a time, for class indices with uniform
// smoothing or none, and logits as they are (kPlain); the same for any strides (kWidth = 1); and
// everything else by flags that are read at run time.
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "cross_entropy_pass.cuh"

namespace pyext {
namespace {

constexpr int64_t kLongRow = 256;   // bytes; shorter ones are not worth their edges
constexpr int64_t kFewClasses = 8;  // per thread, where it reads them one by one

template <typename scalar_t, int kWidth, bool kPlain>
__global__ void __launch_bounds__(kMaxBlock<scalar_t>)
    forward_kernel(const __grid_constant__ CrossEntropyProblem p,
                   const __grid_constant__ CrossEntropyResults out,
                   const __grid_constant__ Shape shape) {
  using RowOf = Row<scalar_t, kWidth, kPlain>;
  using acc_t = typename RowOf::acc_t;
  using Sums = typename RowOf::Sums;
  struct Summed {
    Sums sums;
    acc_t z_a, z_b;  // the logits at the targets
  };
  const RowOf row(p, shape, blockIdx.x, out.entropy != nullptr);
  // Logits are asked for before the target is known, whose row they may turn out not to count for.
  const auto first = row.load(row.classes.first());
  const auto edge = row.classes.load_edge();
  const RowTargets targets = row_targets(p, row.place.row);
  const bool leads = row.place.rank == 0;
  Summed summed = {Sums::none(), leads ? row.logit_at(targets.a) : acc_t(0),
                   leads ? row.logit_at(targets.b) : acc_t(0)};
  if (out.entropy != nullptr || !targets.ignored) {
    row.add_to(summed.sums, first);
    if constexpr (kWidth > 1) summed.sums.add(edge);
  }
  __shared__ Sums shared_sums[RowOf::kSharedSums];
  summed.sums.template join<kWidth == 1>(shape, shared_sums);

  bool writes = leads && row.place.inside;
  int64_t index = row.place.row;
  if constexpr (kWidth > 1) {
    // Neighbouring threads finish the rows of a block: else each of its warps would issue all of
    // that work for the row or two that it has.
    __shared__ Summed shared_rows[kBlock / (2 * kWidth)];
    if (shape.rows_per_block > 1) {
      if (leads) shared_rows[row.place.slot] = summed;
      __syncthreads();
      const int thread = static_cast<int>(threadIdx.x);
      index = shape.first_row(blockIdx.x) + thread;
      writes = thread < shape.rows_per_block && index < p.rows;
      if (writes) summed = shared_rows[thread];
    }
  }
  if (writes) write_row<!kPlain>(p, out, index, summed.sums, summed.z_a, summed.z_b);
}

// The last rows come first: the forward pass has just read them, and those may still be in cache.
template <typename scalar_t, int kWidth, bool kPlain>
__global__ void __launch_bounds__(kMaxBlock<scalar_t>)
    backward_kernel(const __grid_constant__ CrossEntropyProblem p,
                    const __grid_constant__ CrossEntropyCotangents in, scalar_t* gradient,
                    const __grid_constant__ Shape shape) {
  using RowOf = Row<scalar_t, kWidth, kPlain>;
  using acc_t = typename RowOf::acc_t;
  const RowOf row(p, shape, shape.blocks - 1 - blockIdx.x, /*statistics=*/false);
  const auto first = row.load(row.classes.first());
  const auto edge = row.classes.load_edge();
  const RowTargets targets = row_targets(p, row.place.row);

  acc_t shared(0), u_sum(0), dense_sum(0);
  if constexpr (!kPlain) {
    if (p.masked || p.probabilities != nullptr) {
      __shared__ typename RowOf::Sums shared_sums[RowOf::kSharedSums];
      auto sums = RowOf::Sums::none();
      row.add_to(sums, first);
      sums.template join<kWidth == 1>(shape, shared_sums);
      shared = sums.shared;
      u_sum = sums.u_sum;
      dense_sum = sums.dense_sum;
    }
  }
  if (!row.place.inside) return;
  scalar_t* const to = gradient + p.layout.offset(RowLayout::kGradient, row.place.row);
  if (targets.ignored && in.lse == nullptr && in.entropy == nullptr) {
    // Even where the logits are NaN. They are read all the same, to have one loop for both.
    row.each_batch(first, [&](const auto& batch) { row.write_zeros(to, batch); });
    if constexpr (kWidth > 1) row.write_zeros(to, edge);
    return;
  }
  auto terms = gradient_terms(p, in, row.place.row, targets, shared, u_sum, dense_sum);
  if constexpr (kPlain) terms.dense = terms.entropy = acc_t(0);  // known to the compiler
  row.each_batch(kPlain ? first : row.load(row.classes.first()),
                 [&](const auto& batch) { row.write_gradient(to, batch, targets, terms); });
  if constexpr (kWidth > 1) row.write_gradient(to, edge, targets, terms);
}

// Whether 16-byte loads of a row's logits are aligned where 16-byte stores of its gradient are.
bool aligned_alike(const CrossEntropyProblem& p, const void* gradient, int64_t size) {
  const auto& layout = p.layout;
  const auto distance = reinterpret_cast<intptr_t>(gradient) - reinterpret_cast<intptr_t>(p.input);
  bool alike = layout.class_stride[RowLayout::kGradient] == 1 && distance % kVectorBytes == 0;
  for (int d = 0; d < layout.dims; ++d) {
    const int64_t shift =
        layout.strides[RowLayout::kGradient][d] - layout.strides[RowLayout::kInput][d];
    alike = alike && shift * size % kVectorBytes == 0;
  }
  return alike;
}

bool is_plain(const CrossEntropyProblem& p) {
  const bool smooths = p.label_smoothing != 0.0 || p.row_smoothing != nullptr;
  return p.target != nullptr && !p.masked && !p.capped && p.logit_scale == 1.0 &&
         (p.class_mass == nullptr || !smooths);
}

// The class axis is strided, and neighbouring rows lie closer together than neighbouring classes.
bool walks_columns(const RowLayout& layout) {
  constexpr int64_t kFewRows = 8;
  const int64_t class_stride = std::abs(layout.class_stride[RowLayout::kInput]);
  const int last = layout.dims - 1;
  return last >= 0 && layout.sizes[last] >= kFewRows &&
         std::abs(layout.strides[RowLayout::kInput][last]) < class_stride;
}

// Calls launch(shape, width, plain), width and plain as constants.
template <typename scalar_t, typename F>
void choose(const CrossEntropyProblem& p, bool plain, bool vectors, const F& launch) {
  constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(scalar_t));
  const auto with = [&](auto width, auto is_plain) {
    constexpr int kWidth = decltype(width)::value;
    constexpr int kBatch = kWidth * kLoadsOf<scalar_t, kWidth, decltype(is_plain)::value>;
    if (kWidth > 1) {
      launch(shape_of_rows(p.rows, p.classes, kMaxBlock<scalar_t>, 2 * kWidth, 2 * kBatch, kBatch),
             width, is_plain);
    } else if (walks_columns(p.layout)) {
      launch(shape_of_columns(p.rows, p.classes, kBatch), width, is_plain);
    } else {
      launch(shape_of_rows(p.rows, p.classes, kMaxBlock<scalar_t>, 1, kFewClasses, kBatch), width,
             is_plain);
    }
  };
  if (!plain) {
    with(std::integral_constant<int, 1>(), std::false_type());
  } else if (!vectors || p.classes * static_cast<int64_t>(sizeof(scalar_t)) < kLongRow) {
    with(std::integral_constant<int, 1>(), std::true_type());
  } else {
    with(std::integral_constant<int, kVector>(), std::true_type());
  }
}

void cross_entropy_kernel(const CrossEntropyProblem& p, const CrossEntropyResults& out) {
  TORCH_CHECK(out.gradient == nullptr,
              "cross_entropy: on CUDA the gradient is formed in the backward pass alone");
  const bool plain = is_plain(p) && out.entropy == nullptr;
  const bool vectors = p.layout.class_stride[RowLayout::kInput] == 1;
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, p.dtype, "cross_entropy", [&] {
    choose<scalar_t>(p, plain, vectors, [&](const Shape& shape, auto width, auto is_plain) {
      forward_kernel<scalar_t, decltype(width)::value, decltype(is_plain)::value>
          <<<shape.blocks, shape.threads(), 0, stream>>>(p, out, shape);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
}

void cross_entropy_backward_kernel(const CrossEntropyProblem& p, const CrossEntropyCotangents& in,
                                   void* gradient) {
  const bool plain = is_plain(p) && in.entropy == nullptr;
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, p.dtype, "cross_entropy_backward", [&] {
    const bool vectors = p.layout.class_stride[RowLayout::kInput] == 1 &&
                         aligned_alike(p, gradient, sizeof(scalar_t));
    choose<scalar_t>(p, plain, vectors, [&](const Shape& shape, auto width, auto is_plain) {
      backward_kernel<scalar_t, decltype(width)::value, decltype(is_plain)::value>
          <<<shape.blocks, shape.threads(), 0, stream>>>(p, in, static_cast<scalar_t*>(gradient),
                                                         shape);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
}

const RegisterKernel forward(cross_entropy_stub, at::kCUDA, &cross_entropy_kernel);
const RegisterKernel backward(cross_entropy_backward_stub, at::kCUDA,
                              &cross_entropy_backward_kernel);

}  // namespace
}  // namespace pyext
