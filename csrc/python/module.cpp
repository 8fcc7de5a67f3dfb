// The Python module pyext._C: facts of this build, and the objects that hold state.
#include <pybind11/stl.h>
#include <torch/version.h>

#include "adam_stepper.h"
#include "bind_einsum.h"
#include "kernel_stub.h"

#if !defined(PYEXT_CXX_FLAGS)
#define PYEXT_CXX_FLAGS ""
#endif

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Facts of this build of pyext.";
  m.def("torch_version", [] { return TORCH_VERSION; }, "The torch version compiled against.");
  m.def("compiler", [] { return __VERSION__; }, "The version of the C++ compiler.");
  m.def("cxx_flags", [] { return PYEXT_CXX_FLAGS; }, "The C++ flags of libpyext, space-separated.");
  m.def("instruction_set", &pyext::instruction_set,
        "The instruction set of the loaded CPU kernels: DEFAULT, AVX2 or AVX512.");
  m.def("cuda_architectures", &pyext::cuda_architectures,
        "The architectures of the loaded CUDA kernels, such as '900'; empty without CUDA.");
  pyext::bind_adam_stepper(m);
  pyext::bind_einsum(m);
}
