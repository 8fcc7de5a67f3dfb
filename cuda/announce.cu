// Tells libpyext for which architectures this kernel library was compiled.
#include "kernel_stub.h"

#if !defined(__CUDA_ARCH_LIST__)
#define __CUDA_ARCH_LIST__
#endif

static const pyext::AnnounceCudaArchitectures announcement({__CUDA_ARCH_LIST__});
