// Contractions through cuBLAS, by way of torch's own bmm: it has the handles, workspaces and
// settings, such as allow_tf32. Tensors that are matrices are multiplied where they lie; others are
// packed, and a result is scattered, by one kernel each.
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/from_blob.h>

#include "einsum.cuh"
#include "einsum_groups.cuh"
#include "einsum_launch.cuh"

namespace pyext {
namespace {

bool is_half(at::ScalarType dtype) { return dtype == at::kBFloat16 || dtype == at::kHalf; }

class Matmul {
 public:
  explicit Matmul(const SumOfProducts& problem) : problem_(problem), groups_(problem) {
    const at::ScalarType a = problem.in[kA].dtype, b = problem.in[kB].dtype;
    dtype_ = a == b ? a : problem.dtype;
    groups_.choose_order([&](const Groups& groups) { return copied(groups); });
  }

  // cuBLAS counts in 32 bits.
  bool fits() const {
    return std::max({groups_.batch.size(), groups_.m.size(), groups_.n.size(), groups_.k.size()}) <=
           std::numeric_limits<int32_t>::max();
  }

  // Bytes that are moved by packing and scattering.
  double copied() const { return copied(groups_); }

  double flops() const {
    return 2.0 * static_cast<double>(groups_.size(kA)) * static_cast<double>(groups_.n.size());
  }

  const Group& batch() const { return groups_.batch; }

  void run() const {
    const at::Tensor a = factor(kA), b = factor(kB);
    if (const auto strides = in_place(groups_, kOut)) {
      at::Tensor out = view(kOut, problem_.out.data, problem_.out.dtype, *strides);
      return multiply(out, a, b, problem_.alpha, problem_.beta);
    }
    const Strides strides = groups_.packed(kOut);
    const at::Tensor sums = scratch(groups_.size(kOut), problem_.dtype);
    at::Tensor out = view(kOut, sums.data_ptr(), problem_.dtype, strides);
    multiply(out, a, b, 1, 0);
    SumOfProducts scatter = groups_.copy(kOut, strides);
    for (auto& dim : scatter.dims) std::swap(dim.out, dim.in[0]);
    scatter.in = {{sums.data_ptr(), problem_.dtype}};
    scatter.out = problem_.out;
    scatter.dtype = problem_.dtype;
    scatter.alpha = problem_.alpha;
    scatter.beta = problem_.beta;
    merge_dims(scatter.dims);
    cuda_multiply_reduce(scatter);
  }

 private:
  const ProductTensor& tensor(Operand x) const { return x == kOut ? problem_.out : problem_.in[x]; }

  // How cuBLAS may read or write a tensor where it lies, if it may.
  std::optional<Strides> in_place(const Groups& groups, Operand x) const {
    const at::ScalarType dtype = tensor(x).dtype;
    if (x != kOut) return dtype == dtype_ ? groups.matrices(x) : std::nullopt;
    const bool widens = is_half(dtype_) && dtype == at::kFloat;
    if (dtype != dtype_ && !widens) return std::nullopt;
    if (is_half(dtype) && rounds_parts(groups)) return std::nullopt;
    return groups.matrices(x);
  }

  // cuBLAS splits long sums where there are few results, and may round the parts to 16 bits
  // (torch's allow_bf16_reduced_precision_reduction, which is on). Next to such factors a result in
  // float32 costs little.
  static bool rounds_parts(const Groups& groups) {
    return groups.k.size() >= 4 * std::max(groups.m.size(), groups.n.size());
  }

  double copied(const Groups& groups) const {
    double bytes = 0;
    for (const Operand x : {kA, kB, kOut}) {
      if (in_place(groups, x)) continue;
      const auto item = c10::elementSize(tensor(x).dtype) + c10::elementSize(problem_.dtype);
      bytes += static_cast<double>(groups.size(x)) * static_cast<double>(item);
    }
    return bytes;
  }

  at::Tensor view(Operand x, void* data, at::ScalarType dtype, const Strides& s) const {
    const at::Device device = current_device();
    const int64_t sizes[] = {groups_.batch.size(), groups_.rows(x).size(), groups_.cols(x).size()};
    const int64_t strides[] = {s.batch, s.row, s.col};
    return at::for_blob(data, sizes)
        .strides(strides)
        .options(at::TensorOptions(device).dtype(dtype))
        .target_device(device)
        .make_tensor();
  }

  at::Tensor factor(Operand x) const {
    if (const auto strides = in_place(groups_, x)) {
      return view(x, tensor(x).data, dtype_, *strides);
    }
    const Strides strides = groups_.packed(x);
    const at::Tensor buffer = scratch(groups_.size(x), dtype_);
    SumOfProducts pack = groups_.copy(x, strides);
    pack.in = {tensor(x)};
    pack.out = {buffer.data_ptr(), dtype_};
    pack.dtype = problem_.dtype;
    merge_dims(pack.dims);
    cuda_multiply_reduce(pack);
    const int64_t sizes[] = {groups_.batch.size(), groups_.rows(x).size(), groups_.cols(x).size()};
    return buffer.as_strided(sizes, {strides.batch, strides.row, strides.col});
  }

  static void multiply(at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
                       const c10::Scalar& alpha, const c10::Scalar& beta) {
    const bool plain = alpha.equal(1) && beta.equal(0);
    if (out.scalar_type() == a.scalar_type()) {
      if (plain) {
        at::bmm_out(out, a, b);
      } else {
        at::baddbmm_out(out, out, a, b, beta, alpha);
      }
    } else if (plain) {
      at::bmm_out(out, a, b, out.scalar_type());
    } else {
      at::baddbmm_out(out, out, a, b, out.scalar_type(), beta, alpha);
    }
  }

  const SumOfProducts& problem_;
  Groups groups_;
  at::ScalarType dtype_;  // of the matrices
};

// cuBLAS has one stride for a batch. Where a second one would have tensors copied, large products
// are rather formed one after another.
bool multiply_one_by_one(const SumOfProducts& problem, const Matmul& matmul) {
  constexpr int64_t kMostCalls = 16;
  constexpr double kLargeFlops = 1e9;
  const auto& batch = matmul.batch().dims;
  if (batch.size() < 2 || matmul.copied() == 0) return false;
  const auto shortest =
      std::min_element(batch.begin(), batch.end(),
                       [](const ProductDim& a, const ProductDim& b) { return a.size < b.size; });
  const ProductDim dim = *shortest;
  const auto calls = static_cast<double>(dim.size);
  if (dim.size > kMostCalls || matmul.flops() < calls * kLargeFlops) return false;
  SumOfProducts one = problem;
  const auto same = [&](const ProductDim& other) {
    return other.size == dim.size && other.out == dim.out && other.in == dim.in;
  };
  one.dims.erase(std::find_if(one.dims.begin(), one.dims.end(), same));
  merge_dims(one.dims);
  if (Matmul(one).copied() * calls >= matmul.copied()) return false;
  const auto advance = [](ProductTensor& x, int64_t stride) {
    x.data = static_cast<char*>(x.data) + stride * static_cast<int64_t>(c10::elementSize(x.dtype));
  };
  for (int64_t i = 0; i < dim.size; ++i) {
    cuda_matmul(one);
    for (const int f : {kA, kB}) advance(one.in[f], dim.in[f]);
    advance(one.out, dim.out);
  }
  return true;
}

}  // namespace

void cuda_matmul(const SumOfProducts& problem) {
  const Matmul matmul(problem);
  if (!matmul.fits()) return cuda_multiply_reduce(problem);
  if (!multiply_one_by_one(problem, matmul)) matmul.run();
}

}  // namespace pyext
