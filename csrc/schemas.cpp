// Every op of pyext. Kernels, derivatives and fake kernels register themselves under these names.
#include <torch/library.h>

TORCH_LIBRARY(pyext, m) {
  // sign(x) * sqrt(|x| + eps)
  m.def("signed_sqrt(Tensor self, float eps=1e-05) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("signed_sqrt_(Tensor(a!) self, float eps=1e-05) -> Tensor(a!)",
        {at::Tag::pt2_compliant_tag});
  m.def("signed_sqrt.out(Tensor self, float eps=1e-05, *, Tensor(a!) out) -> Tensor(a!)",
        {at::Tag::pt2_compliant_tag});
  m.def("signed_sqrt_backward(Tensor grad, Tensor result) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}
