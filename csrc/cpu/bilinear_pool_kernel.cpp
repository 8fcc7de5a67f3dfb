// bilinear_pool on the CPU: tiles of the product are rooted and their squares summed while they are
// in cache, and written once; a symmetric product by one triangle of tiles.
#include <ATen/Dispatch.h>

#include <cmath>
#include <optional>
#include <vector>

#include "bilinear_pool.h"
#include "cpu/bilinear_pool_gradient.h"
#include "cpu/features.h"
#include "cpu/inner_product.h"
#include "packed_triangle.h"
#include "signed_sqrt.h"

namespace pyext {
namespace {

template <typename acc_t>
using Vec = at::vec::Vectorized<acc_t>;

// Applies f to vectors of x, the last of them filled up.
template <typename acc_t, typename F>
void for_vectors(acc_t* x, int64_t count, const F& f) {
  constexpr int64_t kWidth = Vec<acc_t>::size();
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) f(Vec<acc_t>::loadu(x + i)).store(x + i);
  if (i < count) f(Vec<acc_t>::loadu(x + i, count - i)).store(x + i, count - i);
}

// Where results go before they are divided: full matrices, or packed triangles.
struct Target {
  ProductTensor tensor;
  int64_t sample_size;
  int64_t rows, cols;
  bool packed;

  // A tile whose first element is (row, col), and the mirror image of its columns `mirrored` on.
  template <typename acc_t>
  void put(int64_t sample, int64_t row, int64_t height, int64_t col, int64_t width, acc_t* tile,
           int64_t row_stride, int64_t mirrored) const {
    const int64_t begin = sample * sample_size;
    if (!packed) {
      MoveDims move;
      move.add(height, row_stride, cols);
      move.add(width, 1, 1);
      scatter(tensor, begin + row * cols + col, tile, move);
      MoveDims turned;
      turned.add(height, row_stride, 1);
      turned.add(width - mirrored, 1, cols);
      scatter(tensor, begin + (col + mirrored) * cols + row, tile + mirrored, turned);
      return;
    }
    for (int64_t i = 0; i < height; ++i) {
      const int64_t j = std::max(col, row + i) - col;  // the first that is not below the diagonal
      acc_t* line = tile + i * row_stride;
      const bool diagonal = row + i == col + j;
      for (int64_t c = j + diagonal; c < width; ++c) line[c] *= acc_t(kSqrtTwo);
      if (j >= width) continue;
      MoveDims move;
      move.add(width - j, 1, 1);
      scatter(tensor, begin + packed_row(row + i, rows) + col + j - row - i, line + j, move);
    }
  }
};

// Divides each sample by its norm, and rounds it into the result.
template <typename acc_t>
void divide(const Target& from, const ProductTensor& to, int64_t first, int64_t samples,
            const acc_t* norms) {
  constexpr int64_t kRun = 16384;
  constexpr acc_t kLargestNorm = 1e30f;  // whose inverse has all its digits
  const int64_t runs = (from.sample_size + kRun - 1) / kRun;
  share_tasks(samples * runs, [&](Tasks& take) {
    const auto buffer = make_scratch<acc_t>(kRun);
    for (int64_t task = take(); task >= 0; task = take()) {
      const int64_t sample = task / runs, begin = task % runs * kRun;
      const int64_t count = std::min(kRun, from.sample_size - begin);
      const Vec<acc_t> norm(norms[sample]), minus_norm(-norms[sample]);
      const Vec<acc_t> inverse(acc_t(1) / norms[sample]);
      const bool in_place = from.tensor.data == to.data;
      auto* data = static_cast<acc_t*>(from.tensor.data);
      data += (in_place ? first + sample : sample) * from.sample_size + begin;
      // Once multiplied by the inverse, a quotient lacks a rest; both are faster than a division.
      const auto divided = [&](const auto& x) {
        const auto ratio = x * inverse;
        return multiply_add(multiply_add(ratio, minus_norm, x), inverse, ratio);
      };
      if (norms[sample] < kLargestNorm) {
        for_vectors(data, count, divided);
      } else {  // as it is where an element is infinite
        for_vectors(data, count, [&](const auto& x) { return x / norm; });
      }
      if (in_place) continue;
      store_run(to.data, to.dtype, (first + sample) * from.sample_size + begin, 1, count, data);
    }
  });
}

template <typename acc_t>
void forward_in(const at::Tensor& out, const at::Tensor& norm, const at::Tensor& x,
                const at::Tensor& y, const BilinearPoolOptions& options) {
  const Features<acc_t> left(x, options.center);
  std::optional<Features<acc_t>> right;
  if (y.defined()) right.emplace(y, options.center);
  constexpr int64_t kRowsPerSum = 8;  // short sums, added up in double
  const Gram<acc_t> gram(left, right ? &*right : nullptr);
  const Cut &m = gram.m, &n = gram.n;
  const ProductTensor result{out.data_ptr(), out.scalar_type()};
  // What is divided later is not rounded before.
  const bool widened = options.l2 && result.dtype != c10::CppTypeToScalarType<acc_t>::value;
  Target target{result, out.numel() / left.samples, m.size, n.size, options.packed};
  auto* norms = norm.data_ptr<acc_t>();
  const Vec<acc_t> scale(static_cast<acc_t>(options.scale)), eps(static_cast<acc_t>(options.eps));

  for_stretches<acc_t>(left.samples, target.sample_size, [&](int64_t first, int64_t samples) {
    const auto wide = make_scratch<acc_t>(widened ? samples * target.sample_size : 0);
    if (widened) target.tensor = {wide.get(), c10::CppTypeToScalarType<acc_t>::value};
    const int64_t tiles = m.count() * n.count();
    std::vector<double> squares(samples * tiles);  // of each tile
    gram.run(
        first, samples,
        [&](int64_t batch, int64_t i, int64_t j, int64_t from, acc_t* tile, int64_t row_stride) {
          const int64_t row = m.begin(i), height = m.extent(i);
          const int64_t col = n.begin(j) + from, width = n.extent(j) - from;
          const int64_t mirrored =
              right ? width : std::clamp<int64_t>(row + height - col, 0, width);
          tile += from;
          // Of elements that stand once in the result, and of those that stand twice.
          Vec<acc_t> once(acc_t(0)), twice(acc_t(0));
          const auto rooted = [&](Vec<acc_t>& sum) {
            return [&](const Vec<acc_t>& value) {
              const auto product = value * scale;
              const auto y = options.signed_sqrt ? signed_sqrt_value(product, eps) : product;
              sum = multiply_add(y, y, sum);
              return y;
            };
          };
          double sum = 0;
          for (int64_t r = 0; r < height; ++r) {
            acc_t* line = tile + r * row_stride;
            for_vectors(line, mirrored, rooted(once));
            for_vectors(line + mirrored, width - mirrored, rooted(twice));
            if (r % kRowsPerSum != kRowsPerSum - 1 && r + 1 < height) continue;
            sum += sum_of_lanes(once) + 2 * sum_of_lanes(twice);
            once = twice = Vec<acc_t>(acc_t(0));
          }
          squares[batch * tiles + i * n.count() + j] = sum;
          target.put(widened ? batch : first + batch, row, height, col, width, tile, row_stride,
                     mirrored);
        });
    for (int64_t sample = 0; sample < samples; ++sample) {
      double sum = 0;
      for (int64_t tile = 0; tile < tiles; ++tile) sum += squares[sample * tiles + tile];
      norms[first + sample] =
          options.l2 ? static_cast<acc_t>(sum != sum ? sum : std::max(std::sqrt(sum), kLeastNorm))
                     : acc_t(1);
    }
    if (options.l2) divide(target, result, first, samples, norms + first);
  });
}

template <typename acc_t>
void backward_in(const at::Tensor& grad_x, const at::Tensor& grad_y, const at::Tensor& grad,
                 const at::Tensor& x, const at::Tensor& y, const at::Tensor& result,
                 const at::Tensor& norm, const BilinearPoolOptions& options) {
  const Features<acc_t> left(x, options.center);
  std::optional<Features<acc_t>> right;
  if (y.defined()) right.emplace(y, options.center);
  GradientBlocks<acc_t> blocks(grad, result, norm, left.rows, !right, options);
  const auto direct = [&](auto... arguments) { blocks.template form<false>(arguments...); };
  const auto turned = [&](auto... arguments) { blocks.template form<true>(arguments...); };
  for_stretches<acc_t>(
      left.samples, result.numel() / left.samples, [&](int64_t first, int64_t samples) {
        blocks.project(first, samples);
        multiply_formed<acc_t>(direct, right ? *right : left, grad_x, first, samples);
        if (grad_y.defined()) multiply_formed<acc_t>(turned, left, grad_y, first, samples);
      });
}

void forward_kernel(const at::Tensor& out, const at::Tensor& norm, const at::Tensor& x,
                    const at::Tensor& y, const BilinearPoolOptions& options) {
  if (x.scalar_type() == at::kDouble) return forward_in<double>(out, norm, x, y, options);
  forward_in<float>(out, norm, x, y, options);
}

void backward_kernel(const at::Tensor& grad_x, const at::Tensor& grad_y, const at::Tensor& grad,
                     const at::Tensor& x, const at::Tensor& y, const at::Tensor& result,
                     const at::Tensor& norm, const BilinearPoolOptions& options) {
  const auto dense_grad = grad.contiguous(), dense_result = result.contiguous(),
             dense_norm = norm.contiguous();
  const auto run = [&](auto zero) {
    backward_in<decltype(zero)>(grad_x, grad_y, dense_grad, x, y, dense_result, dense_norm,
                                options);
  };
  if (x.scalar_type() == at::kDouble) return run(double{});
  run(float{});
}

const RegisterKernel forward(bilinear_pool_stub, at::kCPU, &forward_kernel);
const RegisterKernel backward(bilinear_pool_backward_stub, at::kCPU, &backward_kernel);

}  // namespace
}  // namespace pyext
