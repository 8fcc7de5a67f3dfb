// Every op of pyext. Kernels, derivatives and fake kernels register themselves under these names.
#include <torch/library.h>

#include <string>

namespace {

// What cross_entropy and its backward share: csrc/cross_entropy_options.cpp reads them in order.
const std::string kCrossEntropyOptions =
    "Tensor? weight=None, int ignore_index=-100, str reduction=\"mean\", "
    "float label_smoothing=0.0, str smoothing=\"uniform\", Tensor? row_smoothing=None, "
    "Tensor? prior=None, Tensor? target_b=None, float lam=1.0, Tensor? row_lam=None, "
    "float z_loss=0.0, float logit_scale=1.0, float? softcap=None, bool masked=False, "
    "bool validate=False, bool return_stats=False, ScalarType? out_dtype=None";

// What fused_adam and fused_adam_ share; names and order are those of torch._fused_adam_.
const std::string kAdamOptions =
    "Tensor[] state_steps, *, float lr, float beta1, float beta2, float weight_decay, float eps, "
    "bool amsgrad, bool maximize, bool decoupled_weight_decay=False, Tensor? lr_tensor=None, "
    "Tensor? grad_scale=None, Tensor? found_inf=None";

// What einsum and its out= variant share.
const std::string kEinsumOptions = "ScalarType? accumulate_dtype=None, int[]? path=None";

// What bilinear_pool and its backward share.
const std::string kBilinearPoolOptions =
    "float? scale=None, float eps=1e-05, bool signed_sqrt=True, bool l2=True, bool packed=False, "
    "bool center=False";
// The count sketches of compact_bilinear_pool: hashes in [0, output_dim) and signs per channel.
const std::string kSketches = "Tensor hash1, Tensor sign1, Tensor hash2, Tensor sign2";

}  // namespace

TORCH_LIBRARY(pyext, m) {
  const auto op = [&m](const std::string& schema) {
    m.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
  };

  // sign(x) * sqrt(|x| + eps)
  op("signed_sqrt(Tensor self, float eps=1e-05) -> Tensor");
  op("signed_sqrt_(Tensor(a!) self, float eps=1e-05) -> Tensor(a!)");
  op("signed_sqrt.out(Tensor self, float eps=1e-05, *, Tensor(a!) out) -> Tensor(a!)");
  op("signed_sqrt_backward(Tensor grad, Tensor result) -> Tensor");

  // Cross-entropy with label smoothing, mixup, z-loss and soft-capped logits. All outputs but
  // the loss are per row: normalizer (..., 2) for the backward, the others empty without
  // return_stats.
  op("cross_entropy(Tensor input, Tensor target, " + kCrossEntropyOptions +
     ") -> (Tensor loss, Tensor normalizer, Tensor lse, Tensor entropy, "
     "Tensor target_log_prob, Tensor argmax)");
  op("cross_entropy_backward(Tensor? grad_loss, Tensor? grad_lse, Tensor? grad_entropy, "
     "Tensor input, Tensor target, Tensor normalizer, Tensor entropy, " +
     kCrossEntropyOptions + ") -> Tensor");

  // One step of Adam or AdamW over many tensors. state_steps count it already.
  op("fused_adam_(Tensor(a!)[] self, Tensor[] grads, Tensor(b!)[] exp_avgs, "
     "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] max_exp_avg_sqs, " +
     kAdamOptions + ") -> ()");
  op("fused_adam(Tensor[] self, Tensor[] grads, Tensor[] exp_avgs, Tensor[] exp_avg_sqs, "
     "Tensor[] max_exp_avg_sqs, " +
     kAdamOptions +
     ") -> (Tensor[] self_out, Tensor[] exp_avgs_out, Tensor[] exp_avg_sqs_out, "
     "Tensor[] max_exp_avg_sqs_out)");

  // alpha times the sum of products that the equation says. `path` holds the pairs of operands to
  // contract, flattened, as numpy.einsum_path numbers them. With layout="any" the result may have
  // other strides than a contiguous tensor's.
  op("einsum(str equation, Tensor[] operands, *, Scalar alpha=1, str layout=\"contiguous\", " +
     kEinsumOptions + ") -> Tensor");
  op("einsum.out(str equation, Tensor[] operands, *, Scalar alpha=1, Scalar beta=0, " +
     kEinsumOptions + ", Tensor(a!) out) -> Tensor(a!)");

  // Sums over positions s of products of x (N, D1, S) and y (N, D2, S), or x and itself, with
  // signed square root and L2 norm. The second result: what each sample was divided by.
  op("bilinear_pool(Tensor x, Tensor? y=None, *, " + kBilinearPoolOptions +
     ") -> (Tensor output, Tensor norm)");
  op("bilinear_pool_backward(Tensor grad, Tensor x, Tensor? y, Tensor output, Tensor norm, *, " +
     kBilinearPoolOptions + ") -> (Tensor, Tensor)");

  // The same products, scattered with signs into output_dim values per sample (Tensor Sketch).
  op("compact_bilinear_pool(Tensor x, Tensor? y, " + kSketches + ", int output_dim) -> Tensor");
  op("compact_bilinear_pool_backward(Tensor grad, Tensor x, Tensor? y, " + kSketches +
     ") -> (Tensor, Tensor)");

  // The square root of the covariance of x (N, D, S) by Newton-Schulz iterations.
  op("matrix_sqrt_pool(Tensor x, int iterations=5, bool packed=True) -> Tensor");
  op("matrix_sqrt_pool_backward(Tensor grad, Tensor x, Tensor output, int iterations, "
     "bool packed) -> Tensor");
}
