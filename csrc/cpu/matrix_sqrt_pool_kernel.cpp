// matrix_sqrt_pool on the CPU: a sample's matrices stay in cache through all iterations; every
// product is symmetric and computed by one triangle of tiles.
#include <array>
#include <cmath>
#include <optional>
#include <utility>

#include "cpu/features.h"
#include "matrix_sqrt_pool.h"
#include "packed_triangle.h"

namespace pyext {
namespace {

// A matrix whose rows are whole vectors, filled up with zeros.
template <typename acc_t>
struct Square {
  explicit Square(int64_t size_)
      : size(size_), stride(padded_row<acc_t>(size_)), data(make_scratch<acc_t>(size * stride)) {
    std::fill(data.get(), data.get() + size * stride, acc_t(0));
  }
  acc_t* row(int64_t i) const { return data.get() + i * stride; }

  int64_t size, stride;
  Scratch<acc_t> data;
};

// Writes rows that begin on the diagonal or beyond it, and their mirror image.
template <typename acc_t>
void put_symmetric(const Square<acc_t>& to, int64_t row, int64_t height, int64_t col, int64_t width,
                   const acc_t* tile, int64_t row_stride) {
  for (int64_t i = 0; i < height; ++i) {
    copy_run(to.row(row + i) + col, 1, tile + i * row_stride, 1, width);
  }
  const int64_t diagonal = row == col ? std::min(height, width) : 0;
  for (int64_t i = 1; i < diagonal; ++i) {  // equal in theory, so made equal to the last bit
    for (int64_t j = 0; j < i; ++j) to.row(row + i)[col + j] = tile[j * row_stride + i];
  }
  transpose(tile + diagonal, row_stride, to.row(col + diagonal) + row, to.stride, height,
            width - diagonal);
}

template <typename acc_t>
using Factors = std::pair<const Square<acc_t>*, const Square<acc_t>*>;

// out = diagonal I + times (sum of products), which is symmetric, though each product need not be.
template <typename acc_t>
class SymmetricProducts {
 public:
  explicit SymmetricProducts(int64_t size) : edge_{size, kEdge}, depth_(cut_depth<acc_t>(size)) {}

  template <size_t count>
  void operator()(const Square<acc_t>& out, double diagonal, double times,
                  const std::array<Factors<acc_t>, count>& products) const {
    TileGrid grid = grid_of<acc_t>(1, edge_, edge_, depth_);
    grid.k_tiles *= static_cast<int64_t>(count);
    const auto scale = static_cast<acc_t>(times);
    multiply_tiles<acc_t>(
        grid, Left<count>{*this, products}, Right<count>{*this, products},
        [&](int64_t, int64_t i, int64_t j, acc_t* tile, int64_t row_stride) {
          const int64_t height = edge_.extent(i), width = edge_.extent(j);
          for (int64_t r = 0; r < height; ++r) {
            acc_t* line = tile + r * row_stride;
            for (int64_t c = 0; c < width; ++c) line[c] *= scale;
            if (i == j) line[r] += static_cast<acc_t>(diagonal);
          }
          put_symmetric(out, edge_.begin(i), height, edge_.begin(j), width, tile, row_stride);
        },
        [](int64_t i, int64_t j) { return i > j ? -1 : 0; });
  }

 private:
  // Both operands are read where they lie; the sum runs over the products one after the other.
  template <size_t count>
  struct Left {
    const SymmetricProducts& owner;
    const std::array<Factors<acc_t>, count>& products;
    bool in_place() const { return true; }
    Block<acc_t> shape_of(int64_t, int64_t, const acc_t*, int64_t) const { return {}; }
    Block<acc_t> block(int64_t, int64_t i, int64_t s, acc_t*, int64_t) const {
      const Cut &edge = owner.edge_, &depth = owner.depth_;
      const Square<acc_t>& x = *products[s / depth.count()].first;
      const int64_t k = s % depth.count();
      return {x.row(edge.begin(i)) + depth.begin(k), edge.extent(i), depth.extent(k), x.stride, 1};
    }
  };
  template <size_t count>
  struct Right {
    const SymmetricProducts& owner;
    const std::array<Factors<acc_t>, count>& products;
    Block<acc_t> block(int64_t, int64_t s, int64_t j, acc_t*, int64_t) const {
      const Cut &edge = owner.edge_, &depth = owner.depth_;
      const Square<acc_t>& x = *products[s / depth.count()].second;
      const int64_t k = s % depth.count();
      return {x.row(depth.begin(k)) + edge.begin(j), depth.extent(k), edge.extent(j), x.stride, 1};
    }
  };

  Cut edge_, depth_;
};

// The matrices of one sample, and the iterations on them.
template <typename acc_t>
class Iterations {
 public:
  using Matrix = Square<acc_t>;

  Iterations(const Features<acc_t>& x, bool with_change)
      : x_(x), covariance_(x, nullptr), products_(x.rows), with_change_(with_change) {
    for (auto* matrix : {&a_, &t_, &y_, &z_, &next_}) matrix->emplace(x.rows);
    if (!with_change) return;
    for (auto* matrix : {&dt_, &dy_, &dz_}) matrix->emplace(x.rows);
  }

  // The covariance, divided by its trace.
  void norm_covariance(int64_t sample) {
    const auto scale = static_cast<acc_t>(1.0 / static_cast<double>(x_.cols));
    covariance_.run(
        sample, 1,
        [&](int64_t, int64_t i, int64_t j, int64_t from, acc_t* tile, int64_t row_stride) {
          const Cut &m = covariance_.m, &n = covariance_.n;
          const int64_t height = m.extent(i), width = n.extent(j) - from;
          tile += from;
          for (int64_t r = 0; r < height; ++r) {
            for (int64_t c = 0; c < width; ++c) tile[r * row_stride + c] *= scale;
          }
          put_symmetric(*a_, m.begin(i), height, n.begin(j) + from, width, tile, row_stride);
        });
    double sum = 0;
    for (int64_t i = 0; i < a_->size; ++i) sum += static_cast<double>(a_->row(i)[i]);
    is_clamped = sum < kLeastTrace;
    trace = is_clamped ? kLeastTrace : sum;
    const auto divisor = static_cast<acc_t>(trace);
    for (int64_t i = 0; i < a_->size; ++i) {
      for (int64_t j = 0; j < a_->size; ++j) a_->row(i)[j] /= divisor;
    }
  }

  // The root of the normed covariance; with_change: the change of it, instead, when the covariance
  // changes by what direction() holds.
  const Matrix& run(int64_t iterations) {
    using One = std::array<Factors<acc_t>, 1>;
    using Two = std::array<Factors<acc_t>, 2>;
    const Matrix* y = &*a_;
    for (int64_t i = 0; i < iterations; ++i) {
      const bool first = i == 0, last = i + 1 == iterations;
      if (first) {
        fill(*t_, 1.5, -0.5, *a_);
      } else {
        products_(*t_, 1.5, -0.5, One{{{&*z_, y}}});
      }
      if (with_change_) {
        if (first) {
          fill(*dt_, 0, -0.5, *dy_);
        } else {
          products_(*dt_, 0, -0.5, Two{{{&*dz_, y}, {&*z_, &*dy_}}});
        }
        products_(*next_, 0, 1, Two{{{&*dy_, &*t_}, {y, &*dt_}}});
        std::swap(dy_, next_);
        if (last) return *dy_;
        if (first) {
          std::swap(dz_, dt_);
        } else {
          products_(*next_, 0, 1, Two{{{&*dt_, &*z_}, {&*t_, &*dz_}}});
          std::swap(dz_, next_);
        }
      }
      products_(*next_, 0, 1, One{{{y, &*t_}}});
      std::swap(y_, next_);
      y = &*y_;
      if (last) break;
      if (first) {
        std::swap(z_, t_);
      } else {
        products_(*next_, 0, 1, One{{{&*t_, &*z_}}});
        std::swap(z_, next_);
      }
    }
    return *y;
  }

  const Matrix& matrix() const { return *a_; }
  Matrix& direction() { return *dy_; }

  double trace = 0;
  bool is_clamped = false;

 private:
  // to = diagonal I + times x
  static void fill(const Matrix& to, double diagonal, double times, const Matrix& x) {
    for (int64_t i = 0; i < x.size; ++i) {
      for (int64_t j = 0; j < x.size; ++j) to.row(i)[j] = static_cast<acc_t>(times) * x.row(i)[j];
      to.row(i)[i] += static_cast<acc_t>(diagonal);
    }
  }

  const Features<acc_t>& x_;
  Gram<acc_t> covariance_;
  SymmetricProducts<acc_t> products_;
  bool with_change_;
  std::optional<Matrix> a_, t_, y_, z_, next_, dt_, dy_, dz_;
};

// Calls work(sample, iterations) for all samples: many at a time on one thread each, few one after
// the other on all threads. The result is the same.
template <typename acc_t, typename Work>
void for_samples(const Features<acc_t>& x, bool with_change, const Work& work) {
  if (x.samples < at::get_num_threads()) {
    Iterations<acc_t> iterations(x, with_change);
    for (int64_t sample = 0; sample < x.samples; ++sample) work(sample, iterations);
    return;
  }
  share_tasks(x.samples, [&](const auto& take) {
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
double inner_product(const Square<acc_t>& x, const Square<acc_t>& y) {
  double sum = 0;
  for (int64_t i = 0; i < x.size; ++i) {
    for (int64_t j = 0; j < x.size; ++j) sum += static_cast<double>(x.row(i)[j]) * y.row(i)[j];
  }
  return sum;
}

double inner_product(const at::Tensor& x, const at::Tensor& y, int64_t sample) {
  const int64_t count = x.numel() / x.size(0);
  const auto a = make_scratch<double>(count), b = make_scratch<double>(count);
  const auto load = [&](const Scratch<double>& to, const at::Tensor& from) {
    dispatch_dtype(from.scalar_type(), [&](auto zero) {
      const auto* data = static_cast<const decltype(zero)*>(from.const_data_ptr()) + sample * count;
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<double>(data[i]);
    });
  };
  load(a, x);
  load(b, y);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

template <typename acc_t>
void backward_in(const at::Tensor& grad_x, const at::Tensor& grad, const at::Tensor& x,
                 const at::Tensor& result, int64_t count, bool packed) {
  const Features<acc_t> features(x, /*center=*/true);
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
                                : inner_product(grad, result, sample) / (2 * trace) -
                                      inner_product(of_matrix, iterations.matrix()) / trace;
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
