// compact_bilinear_pool on the CPU: the products of channels by tiles, those of a few samples at a
// time, and their signed scatter while they are in cache. Backward, the matrix that the features
// are multiplied with is gathered from the gradient while it is packed.
#include <optional>

#include "compact_bilinear_pool.h"
#include "cpu/features.h"

namespace pyext {
namespace {

// Hashes and signs of one side, for the arithmetic of the kernel.
template <typename acc_t>
struct Sketch {
  const int64_t* hash;
  const acc_t* sign;
  Sketch(const at::Tensor& hashes, const at::Tensor& signs)
      : hash(hashes.const_data_ptr<int64_t>()), sign(signs.const_data_ptr<acc_t>()) {}
};

// (i + j) mod d for i and j in [0, d).
inline int64_t wrapped(int64_t i, int64_t j, int64_t d) { return i + j < d ? i + j : i + j - d; }

template <typename acc_t>
void forward_in(const at::Tensor& out, const at::Tensor& x, const at::Tensor& y,
                const Sketches& sketches) {
  const Features<acc_t> left(x, /*center=*/false);
  std::optional<Features<acc_t>> right;
  if (y.defined()) right.emplace(y, /*center=*/false);
  const Gram<acc_t> gram(left, right ? &*right : nullptr);
  const Sketch<acc_t> first_sketch(sketches.hash1, sketches.sign1),
      second_sketch(sketches.hash2, sketches.sign2);
  const int64_t rows = gram.m.size, cols = gram.n.size, d = out.size(1);

  for_stretches<acc_t>(left.samples, rows * cols, [&](int64_t first, int64_t samples) {
    const auto products = make_scratch<acc_t>(samples * rows * cols);
    const ProductTensor to{products.get(), c10::CppTypeToScalarType<acc_t>::value};
    gram.run(
        first, samples,
        [&](int64_t batch, int64_t i, int64_t j, int64_t from, acc_t* tile, int64_t row_stride) {
          MoveDims move;
          move.add(gram.m.extent(i), row_stride, cols);
          move.add(gram.n.extent(j) - from, 1, 1);
          const int64_t row = batch * rows + gram.m.begin(i), col = gram.n.begin(j) + from;
          scatter(to, row * cols + col, tile + from, move);
        });
    share_tasks(samples, [&](Tasks& take) {
      const auto sums = make_scratch<acc_t>(d);
      for (int64_t sample = take(); sample >= 0; sample = take()) {
        std::fill(sums.get(), sums.get() + d, acc_t(0));
        for (int64_t i = 0; i < rows; ++i) {
          const acc_t* line = products.get() + (sample * rows + i) * cols;
          // One triangle holds what is the same in both.
          for (int64_t j = right ? 0 : i; j < cols; ++j) {
            sums[wrapped(first_sketch.hash[i], second_sketch.hash[j], d)] +=
                first_sketch.sign[i] * second_sketch.sign[j] * line[j];
            if (!right && i != j) {
              sums[wrapped(first_sketch.hash[j], second_sketch.hash[i], d)] +=
                  first_sketch.sign[j] * second_sketch.sign[i] * line[j];
            }
          }
        }
        store_run(out.data_ptr(), out.scalar_type(), (first + sample) * d, 1, d, sums.get());
      }
    });
  });
}

// Blocks of dG (i, j) = s1[i] s2[j] grad[(h1[i] + h2[j]) mod d], or of its transpose, or of both.
template <typename acc_t>
class GradientBlocks {
 public:
  GradientBlocks(const at::Tensor& grad, const Sketches& sketches)
      : first_(sketches.hash1, sketches.sign1),
        second_(sketches.hash2, sketches.sign2),
        d_(grad.size(1)) {
    values_ = make_scratch<acc_t>(grad.numel());
    load_run(values_.get(), grad.const_data_ptr(), grad.scalar_type(), 0, 1, grad.numel());
  }

  template <bool direct, bool transposed>
  void form(int64_t sample, int64_t row, int64_t height, int64_t col, int64_t width, acc_t* to,
            int64_t to_stride) const {
    for (int64_t i = row; i < row + height; ++i) {
      acc_t* line = to + (i - row) * to_stride - col;
      std::fill(line + col, line + col + width, acc_t(0));
      if constexpr (direct) add(sample, first_, i, second_, col, width, line);
      if constexpr (transposed) add(sample, second_, i, first_, col, width, line);
    }
  }

 private:
  void add(int64_t sample, const Sketch<acc_t>& own, int64_t i, const Sketch<acc_t>& other,
           int64_t col, int64_t width, acc_t* line) const {
    const acc_t* grad = values_.get() + sample * d_;
    const int64_t hash = own.hash[i];
    const acc_t sign = own.sign[i];
    for (int64_t j = col; j < col + width; ++j) {
      line[j] += sign * other.sign[j] * grad[wrapped(hash, other.hash[j], d_)];
    }
  }

  Sketch<acc_t> first_, second_;
  int64_t d_;
  Scratch<acc_t> values_;
};

template <typename acc_t>
void backward_in(const at::Tensor& grad_x, const at::Tensor& grad_y, const at::Tensor& grad,
                 const at::Tensor& x, const at::Tensor& y, const Sketches& sketches) {
  const Features<acc_t> left(x, /*center=*/false);
  const GradientBlocks<acc_t> blocks(grad.contiguous(), sketches);
  const int64_t samples = left.samples;
  if (!y.defined()) {
    const auto both = [&](auto... block) { blocks.template form<true, true>(block...); };
    return multiply_formed<acc_t>(both, left, grad_x, 0, samples);
  }
  const auto direct = [&](auto... block) { blocks.template form<true, false>(block...); };
  const auto turned = [&](auto... block) { blocks.template form<false, true>(block...); };
  multiply_formed<acc_t>(direct, Features<acc_t>(y, /*center=*/false), grad_x, 0, samples);
  multiply_formed<acc_t>(turned, left, grad_y, 0, samples);
}

void forward_kernel(const at::Tensor& out, const at::Tensor& x, const at::Tensor& y,
                    const Sketches& sketches) {
  if (x.scalar_type() == at::kDouble) return forward_in<double>(out, x, y, sketches);
  forward_in<float>(out, x, y, sketches);
}

void backward_kernel(const at::Tensor& grad_x, const at::Tensor& grad_y, const at::Tensor& grad,
                     const at::Tensor& x, const at::Tensor& y, const Sketches& sketches) {
  if (x.scalar_type() == at::kDouble) {
    return backward_in<double>(grad_x, grad_y, grad, x, y, sketches);
  }
  backward_in<float>(grad_x, grad_y, grad, x, y, sketches);
}

const RegisterKernel forward(compact_bilinear_pool_stub, at::kCPU, &forward_kernel);
const RegisterKernel backward(compact_bilinear_pool_backward_stub, at::kCPU, &backward_kernel);

}  // namespace
}  // namespace pyext
