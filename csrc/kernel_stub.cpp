// Finds and loads the kernel libraries that lie beside libpyext.so.
#include "kernel_stub.h"

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <mutex>

namespace pyext {
namespace {

std::string loaded_instruction_set;
std::vector<std::string> loaded_cuda_architectures;

std::filesystem::path library_folder() {
  Dl_info info;
  const bool found = dladdr(reinterpret_cast<void*>(&load_kernels), &info) != 0;
  TORCH_CHECK(found, "pyext: cannot find the file that libpyext was loaded from");
  return std::filesystem::absolute(info.dli_fname).parent_path();
}

void open_library(const std::filesystem::path& file) {
  // RTLD_LOCAL: code for one instruction set must not serve anybody else's inline functions.
  const void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK(handle != nullptr, "pyext: cannot load ", file.string(), ": ", dlerror());
}

void load_cpu_kernels(const std::filesystem::path& folder) {
  constexpr std::array<const char*, 3> best_first{"AVX512", "AVX2", "DEFAULT"};
  const auto wanted = std::find(best_first.begin(), best_first.end(), at::get_cpu_capability());
  // A capability unknown here (SVE, VSX) is served by the plain library.
  auto candidate = wanted == best_first.end() ? std::prev(best_first.end()) : wanted;
  for (; candidate != best_first.end(); ++candidate) {
    std::string name = *candidate;
    std::transform(name.begin(), name.end(), name.begin(), ::tolower);
    const auto file = folder / ("libpyext_" + name + ".so");
    if (std::filesystem::exists(file)) return open_library(file);
  }
  TORCH_CHECK(false, "pyext: no kernel library for ", at::get_cpu_capability(), " in ",
              folder.string(), ". Run `python -m pyext build`.");
}

}  // namespace

void load_kernels() {
  static std::once_flag once;
  std::call_once(once, [] {
    const auto folder = library_folder();
    load_cpu_kernels(folder);
    // Not at::hasCUDA(): it counts devices, which starts CUDA, and then the process cannot fork.
    const auto cuda = folder / "libpyext_cuda.so";
    if (std::filesystem::exists(cuda)) open_library(cuda);
  });
}

const std::string& instruction_set() {
  load_kernels();
  return loaded_instruction_set;
}

const std::vector<std::string>& cuda_architectures() {
  load_kernels();
  return loaded_cuda_architectures;
}

AnnounceInstructionSet::AnnounceInstructionSet(const char* name) { loaded_instruction_set = name; }

AnnounceCudaArchitectures::AnnounceCudaArchitectures(std::vector<int> architectures) {
  for (int architecture : architectures) {
    loaded_cuda_architectures.push_back(std::to_string(architecture));
  }
}

void raise_no_kernel(const char* op, c10::DeviceType device) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "pyext::", op, ": no kernel for device '", c10::DeviceTypeName(device, true),
      "' is loaded. Run `python -m pyext doctor`; it says why and what to do.");
}

}  // namespace pyext
