// What Python asks of the einsum engine: calls, the letters of an equation, and plans.
#pragma once

#include <torch/extension.h>

namespace pyext {

void bind_einsum(pybind11::module_& m);

}  // namespace pyext
