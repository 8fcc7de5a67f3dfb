"""Facts of the loaded build, from csrc/python/module.cpp."""

def torch_version() -> str:
    """The torch version compiled against."""

def compiler() -> str:
    """The version of the C++ compiler."""

def cxx_flags() -> str:
    """The C++ flags of libpyext."""

def instruction_set() -> str:
    """The instruction set of the loaded CPU kernels: DEFAULT, AVX2 or AVX512."""

def cuda_architectures() -> list[str]:
    """The architectures of the loaded CUDA kernels, such as "900"; empty without CUDA."""
