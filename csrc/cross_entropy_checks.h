// What cross_entropy demands of its arguments. Every check is made before anything is computed.
#pragma once

#include "cross_entropy.h"

namespace pyext {

// The sizes of the loss without reduction: those of the input without its class axis.
std::vector<int64_t> row_sizes(const at::Tensor& input);

// Raises ValueError or TypeError naming the argument, what was expected and what came.
void check_arguments(const at::Tensor& input, const at::Tensor& target,
                     const CrossEntropyOptions& options);

// Raises IndexError for a class index out of range. `target`: contiguous, int64, on the CPU.
void check_target_range(const at::Tensor& target, int64_t classes, int64_t ignore_index,
                        const char* argument);

}  // namespace pyext
