// From the tensors of one parameter to what the kernels of fused_adam read: checks, and one order
// of elements for all of them.
#pragma once

#include <array>
#include <deque>
#include <ostream>

#include "fused_adam.h"

namespace pyext {

// The tensors of one parameter, by AdamTensor::Operand; undefined where there is none.
using AdamTensors = std::array<at::Tensor, AdamTensor::kOperands>;

// How a message names a parameter.
struct AdamName {
  const char* caller;  // the op or the optimizer
  int64_t group;       // -1: there are no groups
  int64_t index;
};
std::ostream& operator<<(std::ostream& out, const AdamName& name);

// Raises, with the parameter's name, where these tensors cannot make a step together.
void check_adam_tensors(const AdamTensors& tensors, const AdamName& name);

// Checked tensors as operands. Strides that are not those of the common order are kept in
// `strides`, whose elements never move.
AdamTensor laid_out(const AdamTensors& tensors, std::deque<AdamOperand::Strides>& strides);

}  // namespace pyext
