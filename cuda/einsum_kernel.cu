// The kernels of einsum on CUDA.
#include "einsum.cuh"

namespace pyext {
namespace {

void contract(const SumOfProducts& problem) {
  const bool is_integral = c10::isIntegralType(problem.dtype, /*includeBool=*/true);
  (is_integral ? cuda_integer_matmul : cuda_matmul)(problem);
}

const RegisterKernel multiply_reduce_kernel(multiply_reduce_stub, at::kCUDA, &cuda_multiply_reduce);
const RegisterKernel contract_kernel(contract_stub, at::kCUDA, &contract);

}  // namespace
}  // namespace pyext
