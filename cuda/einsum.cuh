// What the kernels of einsum on CUDA call of one another; contraction.h says what they solve.
#pragma once

#include "contraction.h"

namespace pyext {

// One pass over memory; also what packs and scatters tensors, and adds up the pieces of sums.
void cuda_multiply_reduce(const SumOfProducts& problem);

// Two factors of floating point or complex numbers, through cuBLAS.
void cuda_matmul(const SumOfProducts& problem);

// Two factors of integers, exact modulo 2^bits.
void cuda_integer_matmul(const SumOfProducts& problem);

// Three factors: the first, and the elementwise product of the others.
void cuda_formed_matmul(const SumOfProducts& problem);

// Any contraction, by the one of these that it needs.
void cuda_contract(const SumOfProducts& problem);

}  // namespace pyext
