// matrix_sqrt_pool on the CPU: the samples are shared out, and each of them is iterated on in
// cache.
#include <cmath>

#include "cpu/features.h"
#include "cpu/inner_product.h"
#include "cpu/matrix_sqrt_iterations.h"
#include "matrix_sqrt_pool.h"
#include "packed_triangle.h"

namespace pyext {
namespace {

// Calls work(sample, iterations) for all samples: many at a time on one thread each, few one after
// the other on all threads. The result is the same.
template <typename acc_t, typename Work>
void for_samples(const Features<acc_t>& x, bool with_change, const Work& work) {
  if (x.samples < at::get_num_threads()) {
    Iterations<acc_t> iterations(x, with_change);
    for (int64_t sample = 0; sample < x.samples; ++sample) work(sample, iterations);
    return;
  }
  share_tasks(x.samples, [&](Tasks& take) {
    Iterations<acc_t> iterations(x, with_change);
    for (int64_t sample = take(); sample >= 0; sample = take()) work(sample, iterations);
  });
}

template <typename acc_t>
void forward_in(const at::Tensor& out, const at::Tensor& x, int64_t count, bool packed) {
  const Features<acc_t> features(x, /*center=*/true);
  const int64_t d = features.rows, sample_size = out.numel() / features.samples;
  for_samples(features, false, [&](int64_t sample, Iterations<acc_t>& iterations) {
    iterations.norm_covariance(sample);
    const Square<acc_t>& root = iterations.run(count);
    const auto scale = static_cast<acc_t>(std::sqrt(iterations.trace));
    const auto line = make_scratch<acc_t>(d);
    for (int64_t i = 0; i < d; ++i) {
      const int64_t begin = packed ? i : 0;
      const acc_t other = packed ? scale * static_cast<acc_t>(kSqrtTwo) : scale;
      for (int64_t j = begin; j < d; ++j) line[j] = root.row(i)[j] * (i == j ? scale : other);
      const int64_t to = sample * sample_size + (packed ? packed_row(i, d) : i * d);
      store_run(out.data_ptr(), out.scalar_type(), to, 1, d - begin, line.get() + begin);
    }
  });
}

// A row of the symmetric matrix that stands for the cotangent: <it, root> = <grad, result>.
template <typename acc_t>
void symmetric_gradient(const at::Tensor& grad, int64_t sample, bool packed, Square<acc_t>& to) {
  const int64_t d = to.size, begin = sample * (grad.numel() / grad.size(0));
  const auto line = make_scratch<acc_t>(d);
  const auto load = [&](int64_t from, int64_t count) {
    load_run(line.get(), grad.const_data_ptr(), grad.scalar_type(), begin + from, 1, count);
  };
  if (!packed) {
    for (int64_t i = 0; i < d; ++i) {
      load(i * d, d);
      for (int64_t j = 0; j < d; ++j) to.row(i)[j] = line[j] / 2;
    }
    for (int64_t i = 0; i < d; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        to.row(i)[j] = to.row(j)[i] = to.row(i)[j] + to.row(j)[i];
      }
    }
    return;
  }
  for (int64_t i = 0; i < d; ++i) {  // off the diagonal: sqrt(2) times each of two equal values
    load(packed_row(i, d), d - i);
    to.row(i)[i] = line[0];
    for (int64_t j = i + 1; j < d; ++j) {
      to.row(i)[j] = to.row(j)[i] = line[j - i] * static_cast<acc_t>(kSqrtTwo / 2);
    }
  }
}

template <typename acc_t>
void backward_in(const at::Tensor& grad_x, const at::Tensor& grad, const at::Tensor& x,
                 const at::Tensor& result, int64_t count, bool packed) {
  const Features<acc_t> features(x, /*center=*/true);
  const int64_t sample_size = grad.numel() / features.samples;
  for_samples(features, true, [&](int64_t sample, Iterations<acc_t>& iterations) {
    iterations.norm_covariance(sample);
    auto& direction = iterations.direction();
    symmetric_gradient(grad, sample, packed, direction);
    const double trace = iterations.trace;
    const auto root = static_cast<acc_t>(std::sqrt(trace));
    for (int64_t i = 0; i < direction.size; ++i) {
      for (int64_t j = 0; j < direction.size; ++j) direction.row(i)[j] *= root;
    }
    const Square<acc_t>& of_matrix = iterations.run(count);
    const double of_trace = iterations.is_clamped
                                ? 0
                                : inner_product<acc_t>(read_from(grad), read_from(result),
                                                       sample * sample_size, sample_size) /
                                          (2 * trace) -
                                      of_matrix.inner_product(iterations.matrix()) / trace;
    const double scale = 2.0 / static_cast<double>(features.cols);
    const auto factor = static_cast<acc_t>(scale / trace),
               diagonal = static_cast<acc_t>(scale * of_trace);
    multiply_formed<acc_t>(
        [&](int64_t, int64_t row, int64_t height, int64_t col, int64_t width, acc_t* to,
            int64_t to_stride) {
          for (int64_t i = row; i < row + height; ++i) {
            acc_t* line = to + (i - row) * to_stride - col;
            for (int64_t j = col; j < col + width; ++j) line[j] = factor * of_matrix.row(i)[j];
            if (i >= col && i < col + width) line[i] += diagonal;
          }
        },
        features, grad_x, sample, 1);
  });
}

void forward_kernel(const at::Tensor& out, const at::Tensor& x, int64_t iterations, bool packed) {
  if (x.scalar_type() == at::kDouble) return forward_in<double>(out, x, iterations, packed);
  forward_in<float>(out, x, iterations, packed);
}

void backward_kernel(const at::Tensor& grad_x, const at::Tensor& grad, const at::Tensor& x,
                     const at::Tensor& result, int64_t iterations, bool packed) {
  const auto dense_grad = grad.contiguous(), dense_result = result.contiguous();
  if (x.scalar_type() == at::kDouble) {
    return backward_in<double>(grad_x, dense_grad, x, dense_result, iterations, packed);
  }
  backward_in<float>(grad_x, dense_grad, x, dense_result, iterations, packed);
}

const RegisterKernel forward(matrix_sqrt_pool_stub, at::kCPU, &forward_kernel);
const RegisterKernel backward(matrix_sqrt_pool_backward_stub, at::kCPU, &backward_kernel);

}  // namespace
}  // namespace pyext
