// The kernel of einsum for sums without a matrix product in them: which arithmetic they are done
// in.
#include "contraction.h"
#include "cpu/multiply_reduce.h"
#include "cpu/sum_in_pieces.h"

namespace pyext {
namespace {

template <typename T>
void multiply_reduce_in(const SumOfProducts& problem) {
  const MultiplyReduce<T> loops(problem);
  if (const int64_t pieces = loops.pieces(); pieces > 1) {
    return sum_in_pieces(problem, pieces,
                         [](const SumOfProducts& part) { MultiplyReduce<T>(part).run(); });
  }
  loops.run();
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

const RegisterKernel multiply_reduce(multiply_reduce_stub, at::kCPU, &multiply_reduce_kernel);

}  // namespace
}  // namespace pyext
