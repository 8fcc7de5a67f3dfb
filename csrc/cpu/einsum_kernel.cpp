// The kernels of einsum: which arithmetic a sum of products is done in.
#include <algorithm>
#include <cmath>
#include <utility>

#include "contraction.h"
#include "cpu/contract.h"
#include "cpu/multiply_reduce.h"

namespace pyext {
namespace {

// Complex tensors seen as real ones of twice the size.
SumOfProducts as_real(SumOfProducts problem, at::ScalarType real) {
  for (auto& x : problem.in) x.dtype = real;
  problem.out.dtype = real;
  return problem;
}

// Forms the sum in `pieces` along an index, each with a result of its own, and adds those up in
// their order. Of the indices that are long enough it is the one that the first factor has furthest
// apart, which leaves its runs whole.
template <typename T, typename Kernel>
void sum_in_pieces(const SumOfProducts& problem, int64_t pieces, const Kernel& kernel) {
  const auto suits = [&](const ProductDim& dim) {
    return std::pair(dim.out == 0 ? std::min(dim.size, pieces) : 0, std::abs(dim.in[0]));
  };
  const auto best =
      std::max_element(problem.dims.begin(), problem.dims.end(),
                       [&](const auto& x, const auto& y) { return suits(x) < suits(y); });
  const auto cut = static_cast<size_t>(best - problem.dims.begin());
  const ProductDim split = problem.dims[cut];
  pieces = std::min(pieces, split.size);
  const int64_t length = split.size / pieces, rest = split.size % pieces;

  SumOfProducts part = problem, total;
  part.alpha = 1;
  part.beta = 0;
  int64_t results = 1;
  for (auto& dim : part.dims) {
    if (dim.out == 0) continue;
    total.dims.push_back({dim.size, dim.out, {results}});
    dim.out = results;
    results *= dim.size;
  }
  const auto sums = make_scratch<T>((pieces + 1) * results);
  part.out = {sums.get(), problem.dtype};
  part.dims[cut].size = length;
  part.dims.push_back({pieces, results, split.in});
  for (auto& step : part.dims.back().in) step *= length;
  kernel(part);
  if (rest > 0) {
    part.dims.pop_back();
    part.dims[cut].size = rest;
    for (int f = 0; f < part.factors(); ++f) {
      auto& x = part.in[f];
      x.data = static_cast<char*>(x.data) +
               pieces * length * split.in[f] * static_cast<int64_t>(c10::elementSize(x.dtype));
    }
    part.out.data = sums.get() + pieces * results;
    kernel(part);
  }
  total.in.push_back({sums.get(), problem.dtype});
  total.out = problem.out;
  total.dtype = problem.dtype;
  total.alpha = problem.alpha;
  total.beta = problem.beta;
  total.dims.push_back({pieces + (rest > 0), 0, {results}});
  MultiplyReduce<T>(total).run();
}

template <typename T>
void multiply_reduce_in(const SumOfProducts& problem) {
  const MultiplyReduce<T> loops(problem);
  if (const int64_t pieces = loops.pieces(); pieces > 1) {
    return sum_in_pieces<T>(problem, pieces,
                            [](const SumOfProducts& part) { MultiplyReduce<T>(part).run(); });
  }
  loops.run();
}

// T: the type of a value; acc_t: of the real numbers it is made of.
template <typename T, typename acc_t>
void contract_in(const SumOfProducts& problem) {
  constexpr bool is_complex = !std::is_same_v<T, acc_t>;
  const auto contraction = [](const SumOfProducts& part) {
    return Contraction<acc_t>(
        is_complex ? as_real(part, c10::CppTypeToScalarType<acc_t>::value) : part, is_complex);
  };
  auto whole = contraction(problem);
  if (const int64_t pieces = whole.pieces(); pieces > 1) {
    return sum_in_pieces<T>(problem, pieces,
                            [&](const SumOfProducts& part) { contraction(part).run(); });
  }
  whole.run();
}

void multiply_reduce_kernel(const SumOfProducts& problem) {
  switch (problem.dtype) {
    case at::kFloat:
      return multiply_reduce_in<float>(problem);
    case at::kDouble:
      return multiply_reduce_in<double>(problem);
    case at::kInt:
      return multiply_reduce_in<int32_t>(problem);
    case at::kLong:
      return multiply_reduce_in<int64_t>(problem);
    case at::kComplexFloat:
      return multiply_reduce_in<c10::complex<float>>(problem);
    case at::kComplexDouble:
      return multiply_reduce_in<c10::complex<double>>(problem);
    default:
      TORCH_INTERNAL_ASSERT(false, "no sums of ", problem.dtype);
  }
}

void contract_kernel(const SumOfProducts& problem) {
  switch (problem.dtype) {
    case at::kFloat:
      return contract_in<float, float>(problem);
    case at::kDouble:
      return contract_in<double, double>(problem);
    case at::kInt:
      return contract_in<int32_t, int32_t>(problem);
    case at::kLong:
      return contract_in<int64_t, int64_t>(problem);
    case at::kComplexFloat:
      return contract_in<c10::complex<float>, float>(problem);
    case at::kComplexDouble:
      return contract_in<c10::complex<double>, double>(problem);
    default:
      TORCH_INTERNAL_ASSERT(false, "no sums of ", problem.dtype);
  }
}

const RegisterKernel multiply_reduce(multiply_reduce_stub, at::kCPU, &multiply_reduce_kernel);
const RegisterKernel contract(contract_stub, at::kCPU, &contract_kernel);

}  // namespace
}  // namespace pyext
