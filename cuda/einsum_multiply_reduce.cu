// Sums of products without a matrix product in them: one pass over memory, nothing materialised but
// the sums of pieces where there are few results.
#include "einsum.cuh"
#include "einsum_layout.cuh"

namespace pyext {
namespace {

// Calls the kernel for the number of factors.
template <typename Element, int kWidth, int kFactors = 1>
void run(const Layout& layout, int factors, void* scratch) {
  if constexpr (kFactors < kMaxFactors) {
    if (factors > kFactors) return run<Element, kWidth, kFactors + 1>(layout, factors, scratch);
  }
  launch(multiply_reduce_kernel<Element, kWidth, kFactors>, layout.blocks(), layout.pieces(),
         layout.loops<SumType<Element>>(scratch));
}

template <typename Element>
void run_units(const Layout& layout, int factors, void* scratch) {
  run<Element, kVectorBytes / static_cast<int>(sizeof(Element))>(layout, factors, scratch);
}

void run(const Layout& layout, const SumOfProducts& problem, void* scratch) {
  const int factors = problem.factors();
  const at::ScalarType dtype = problem.in[0].dtype;
  const bool units = layout.width() > 1;
  const bool uniform = std::all_of(problem.in.begin(), problem.in.end(),
                                   [&](const ProductTensor& x) { return x.dtype == dtype; });
  switch (problem.dtype) {
    case at::kFloat:
      if (units && dtype == at::kBFloat16) return run_units<at::BFloat16>(layout, factors, scratch);
      if (units && dtype == at::kHalf) return run_units<at::Half>(layout, factors, scratch);
      if (units) return run_units<float>(layout, factors, scratch);
      if (uniform && dtype == at::kFloat) return run<float, 1>(layout, factors, scratch);
      return run<Mixed<float>, 1>(layout, factors, scratch);
    case at::kDouble:
      if (units) return run_units<double>(layout, factors, scratch);
      return run<double, 1>(layout, factors, scratch);
    case at::kInt:
      if (units) return run_units<int32_t>(layout, factors, scratch);
      return run<Mixed<uint32_t>, 1>(layout, factors, scratch);
    case at::kLong:
      if (units) return run_units<int64_t>(layout, factors, scratch);
      return run<int64_t, 1>(layout, factors, scratch);
    case at::kComplexFloat:
      return run<c10::complex<float>, 1>(layout, factors, scratch);
    case at::kComplexDouble:
      return run<c10::complex<double>, 1>(layout, factors, scratch);
    default:
      TORCH_INTERNAL_ASSERT(false, "no sums of ", problem.dtype);
  }
}

}  // namespace

void cuda_multiply_reduce(const SumOfProducts& problem) {
  const Layout layout(problem);
  const int64_t blocks = layout.blocks(), pieces = layout.pieces();
  if (blocks == 0) return;
  if (pieces == 1) return run(layout, problem, nullptr);
  Layout::Dims kept = layout.kept();
  const int64_t results = Layout::product(kept);
  const at::Tensor sums = scratch(pieces * results, problem.dtype);
  run(layout, problem, sums.data_ptr());

  SumOfProducts total = problem;
  total.in.assign(1, {sums.data_ptr(), problem.dtype});
  total.dims.clear();
  Layout::place_contiguously(kept);
  for (size_t d = 0; d < kept.size(); ++d) {
    total.dims.push_back({kept[d].size, layout.kept()[d].out, {kept[d].out}});
  }
  total.dims.push_back({pieces, 0, {results}});
  merge_dims(total.dims);
  cuda_multiply_reduce(total);
}

}  // namespace pyext
