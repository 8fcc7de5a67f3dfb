// The kernel of einsum for matrix products: which arithmetic they are done in.
#include "contraction.h"
#include "cpu/contract.h"
#include "cpu/sum_in_pieces.h"

namespace pyext {
namespace {

// acc_t: the type of the real numbers that a value is made of.
template <typename acc_t>
void contract_in(const SumOfProducts& problem) {
  const auto contraction = [is_complex = c10::isComplexType(problem.dtype)](SumOfProducts part) {
    constexpr at::ScalarType real = c10::CppTypeToScalarType<acc_t>::value;
    if (is_complex) {  // tensors seen as real ones of twice the size
      for (auto& x : part.in) x.dtype = real;
      part.out.dtype = real;
    }
    return Contraction<acc_t>(part, is_complex);
  };
  auto whole = contraction(problem);
  if (const int64_t pieces = whole.pieces(); pieces > 1) {
    return sum_in_pieces(problem, pieces,
                         [&](const SumOfProducts& part) { contraction(part).run(); });
  }
  whole.run();
}

void contract_kernel(const SumOfProducts& problem) {
  switch (problem.dtype) {
    case at::kFloat:
    case at::kComplexFloat:
      return contract_in<float>(problem);
    case at::kDouble:
    case at::kComplexDouble:
      return contract_in<double>(problem);
    case at::kInt:
      return contract_in<int32_t>(problem);
    case at::kLong:
      return contract_in<int64_t>(problem);
    default:
      TORCH_INTERNAL_ASSERT(false, "no sums of ", problem.dtype);
  }
}

const RegisterKernel contract(contract_stub, at::kCPU, &contract_kernel);

}  // namespace
}  // namespace pyext
