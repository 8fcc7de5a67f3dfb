// The kernels of einsum on CUDA.
#include "einsum.cuh"

namespace pyext {

void cuda_contract(const SumOfProducts& problem) {
  const bool is_integral = c10::isIntegralType(problem.dtype, /*includeBool=*/true);
  const auto matmul = is_integral ? cuda_integer_matmul : cuda_matmul;
  (problem.factors() == 3 ? cuda_formed_matmul : matmul)(problem);
}

namespace {

const RegisterKernel multiply_reduce_kernel(multiply_reduce_stub, at::kCUDA, &cuda_multiply_reduce);
const RegisterKernel contract_kernel(contract_stub, at::kCUDA, &cuda_contract);

}  // namespace
}  // namespace pyext
