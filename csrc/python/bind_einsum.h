// What Python asks of the einsum engine: calls, the letters of an equation, and plans.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace pyext {

void bind_einsum(pybind11::module_& m);

}  // namespace pyext
