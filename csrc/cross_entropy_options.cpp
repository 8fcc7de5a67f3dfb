// The arguments of cross_entropy on the dispatcher's stack. The op has nineteen of them, so its
// kernels are boxed: the order stands here and in the schema, and nowhere else.
#include "cross_entropy.h"

namespace pyext {

CrossEntropyOptions CrossEntropyOptions::from(const torch::jit::Stack& stack) {
  CrossEntropyOptions o;
  auto value = stack.end() - kCount;
  o.weight = (value++)->toOptional<at::Tensor>();
  o.ignore_index = (value++)->toInt();
  o.reduction = (value++)->toStringRef();
  o.label_smoothing = (value++)->toDouble();
  o.smoothing = (value++)->toStringRef();
  o.row_smoothing = (value++)->toOptional<at::Tensor>();
  o.prior = (value++)->toOptional<at::Tensor>();
  o.target_b = (value++)->toOptional<at::Tensor>();
  o.lam = (value++)->toDouble();
  o.row_lam = (value++)->toOptional<at::Tensor>();
  o.z_loss = (value++)->toDouble();
  o.logit_scale = (value++)->toDouble();
  o.softcap = (value++)->toOptional<double>();
  o.masked = (value++)->toBool();
  o.validate = (value++)->toBool();
  o.return_stats = (value++)->toBool();
  o.out_dtype = (value++)->toOptional<at::ScalarType>();
  return o;
}

void CrossEntropyOptions::push_to(torch::jit::Stack& stack) const {
  torch::jit::push(stack, weight, ignore_index, reduction, label_smoothing, smoothing,
                   row_smoothing, prior, target_b, lam, row_lam, z_loss, logit_scale, softcap,
                   masked, validate, return_stats, out_dtype);
}

Smoothing smoothing_from(const std::string& name) {
  if (name == "uniform") return Smoothing::kUniform;
  if (name == "others") return Smoothing::kOthers;
  if (name == "lsr") return Smoothing::kLsr;
  if (name == "prior") return Smoothing::kPrior;
  TORCH_CHECK_VALUE(false,
                    "cross_entropy: expected smoothing to be 'uniform', 'others', 'lsr' or a "
                    "tensor with one mass per class, got '",
                    name, "'");
}

}  // namespace pyext
