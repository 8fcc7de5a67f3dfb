// The seam between an op's entry (csrc/) and its kernels (csrc/cpu, cuda/): a function pointer per
// device, filled by the kernel library that is loaded. libpyext.so loads that library itself, from
// its own folder, the first time a kernel is asked for; so Python and C++ programs share one rule.
#pragma once

#include <c10/core/DeviceType.h>

#include <string>
#include <utility>
#include <vector>

namespace pyext {

// Loads the kernel libraries beside libpyext.so, once: the CPU library of the best instruction set
// that at::get_cpu_capability() allows (ATEN_CPU_CAPABILITY is honoured), and the CUDA library when
// it is there. Raises RuntimeError when no CPU library can be loaded.
void load_kernels();

// The name of the instruction set whose library is loaded: "DEFAULT", "AVX2" or "AVX512".
const std::string& instruction_set();

// The architectures of the CUDA library, such as "900"; empty when none is loaded.
const std::vector<std::string>& cuda_architectures();

// Called by the kernel libraries as they are loaded.
struct AnnounceInstructionSet {
  explicit AnnounceInstructionSet(const char* name);
};
struct AnnounceCudaArchitectures {
  explicit AnnounceCudaArchitectures(std::vector<int> architectures);
};

// Raises: no kernel of this op is loaded for this device.
[[noreturn]] void raise_no_kernel(const char* op, c10::DeviceType device);

template <typename Signature>
class KernelStub {
 public:
  explicit constexpr KernelStub(const char* op) : op_(op) {}

  template <typename... Args>
  auto operator()(c10::DeviceType device, Args&&... args) const {
    Signature* const& kernel = device == c10::DeviceType::CUDA ? cuda_ : cpu_;
    if (kernel == nullptr) {
      load_kernels();
      if (kernel == nullptr) raise_no_kernel(op_, device);
    }
    return kernel(std::forward<Args>(args)...);
  }

  void set(c10::DeviceType device, Signature* kernel) {
    (device == c10::DeviceType::CUDA ? cuda_ : cpu_) = kernel;
  }

 private:
  const char* op_;
  Signature* cpu_ = nullptr;
  Signature* cuda_ = nullptr;
};

// One static object of this type in a kernel file fills the stub when its library is loaded.
template <typename Signature>
struct RegisterKernel {
  RegisterKernel(KernelStub<Signature>& stub, c10::DeviceType device, Signature* kernel) {
    stub.set(device, kernel);
  }
};

}  // namespace pyext
