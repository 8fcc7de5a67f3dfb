// Blocks of the tensors of a sum of products, of any dtype, to and from the type it is summed in.
#pragma once

#include <cstdint>
#include <type_traits>

#include "contraction.h"
#include "cpu/move.h"

namespace pyext {
namespace {

// Calls f with a value of the C++ type of a dtype that is summed up in `acc_t`.
template <typename acc_t, typename F>
void dispatch_factor(at::ScalarType dtype, F&& f) {
  if constexpr (std::is_same_v<acc_t, float>) {
    if (dtype == at::kFloat) return f(float{});
    if (dtype == at::kBFloat16) return f(at::BFloat16{});
    if (dtype == at::kHalf) return f(at::Half{});
  } else if constexpr (std::is_same_v<acc_t, int32_t>) {
    if (dtype == at::kInt) return f(int32_t{});
    if (dtype == at::kShort) return f(int16_t{});
    if (dtype == at::kChar) return f(int8_t{});
    if (dtype == at::kByte) return f(uint8_t{});
    if (dtype == at::kBool) return f(bool{});
  } else {
    if (dtype == c10::CppTypeToScalarType<acc_t>::value) return f(acc_t{});
  }
  TORCH_INTERNAL_ASSERT(false, "no sums of ", dtype);
}

template <typename acc_t>
void gather(acc_t* to, const ProductTensor& tensor, int64_t offset, const MoveDims& dims) {
  dispatch_factor<acc_t>(tensor.dtype, [&](auto zero) {
    move_block(to, static_cast<const decltype(zero)*>(tensor.data) + offset, dims, Follow::kFrom);
  });
}

template <typename acc_t>
void scatter(const ProductTensor& tensor, int64_t offset, const acc_t* from, const MoveDims& dims) {
  dispatch_factor<acc_t>(tensor.dtype, [&](auto zero) {
    move_block(static_cast<decltype(zero)*>(tensor.data) + offset, from, dims, Follow::kTo);
  });
}

}  // namespace
}  // namespace pyext
