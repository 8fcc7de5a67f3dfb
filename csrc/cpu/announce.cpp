// Tells libpyext which instruction set this kernel library was compiled for.
#include "kernel_stub.h"

#define PYEXT_QUOTE(name) #name
#define PYEXT_NAME_OF(macro) PYEXT_QUOTE(macro)

static const pyext::AnnounceInstructionSet announcement(PYEXT_NAME_OF(CPU_CAPABILITY));
