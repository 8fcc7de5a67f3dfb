// Memory for results on the CPU.
//
// A large result is freed and asked for again at every step of a training loop. Fresh from the
// system, each of its pages is cleared by the kernel first, which costs more than the arithmetic of
// a memory-bound op. So the few blocks that were freed last are kept for the next result of their
// size, in huge pages. Those that lie idle for a second, and what exceeds a gigabyte, are marked
// free (MADV_FREE) when another is freed: the system takes their pages back whenever memory is
// short.
#pragma once

#include <ATen/core/Tensor.h>

namespace pyext {

// As at::empty and at::empty_strided.
at::Tensor empty_result(at::IntArrayRef sizes, const at::TensorOptions& options);
at::Tensor empty_strided_result(at::IntArrayRef sizes, at::IntArrayRef strides,
                                const at::TensorOptions& options);
// As at::empty_like.
at::Tensor empty_result_like(const at::Tensor& x);

}  // namespace pyext
