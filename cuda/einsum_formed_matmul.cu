// Contractions of three factors on CUDA: the matrix product of the first with the elementwise
// product of the others, which is formed part by part in scratch memory.
#include <algorithm>
#include <limits>
#include <utility>

#include "einsum.cuh"
#include "einsum_launch.cuh"

namespace pyext {
namespace {

constexpr int64_t kFormedBytes = 64ll << 20;

using Dims = c10::SmallVector<ProductDim, 8>;

bool is_formed(const ProductDim& dim) { return dim.in[1] != 0 || dim.in[2] != 0; }

int64_t item(at::ScalarType dtype) { return static_cast<int64_t>(c10::elementSize(dtype)); }

void advance(ProductTensor& x, int64_t elements) {
  x.data = static_cast<char*>(x.data) + elements * item(x.dtype);
}

// The indices of the formed matrix in the order that they are laid out, the fastest last. Of a
// matrix, rows or columns go along what is contiguous in the factors.
Dims formed_dims(const SumOfProducts& problem) {
  Dims batch, n, k;
  for (const auto& dim : problem.dims) {
    if (is_formed(dim)) (dim.out == 0 ? k : dim.in[0] != 0 ? batch : n).push_back(dim);
  }
  const auto least_stride = [](const Dims& dims) {
    int64_t least = std::numeric_limits<int64_t>::max();
    for (const auto& dim : dims) {
      for (const int f : {1, 2}) {
        if (dim.in[f] != 0) least = std::min(least, dim.in[f]);
      }
    }
    return least;
  };
  // One index for cuBLAS, where those of the result and of the first factor are.
  const auto by_result = [](const ProductDim& x, const ProductDim& y) { return x.out > y.out; };
  std::stable_sort(batch.begin(), batch.end(), by_result);
  std::stable_sort(n.begin(), n.end(), by_result);
  std::stable_sort(k.begin(), k.end(),
                   [](const ProductDim& x, const ProductDim& y) { return x.in[0] > y.in[0]; });
  if (least_stride(n) < least_stride(k)) std::swap(n, k);
  batch.append(n.begin(), n.end());
  batch.append(k.begin(), k.end());
  return batch;
}

// The two problems that one of three factors comes to.
struct Steps {
  SumOfProducts form, multiply;
  int64_t elements = 1;  // of the formed matrix

  explicit Steps(const SumOfProducts& problem) : form(problem), multiply(problem) {
    form.alpha = 1;
    form.beta = 0;
    form.in = {problem.in[1], problem.in[2]};
    form.dims = formed_dims(problem);
    multiply.in = {problem.in[0], {}};
    multiply.dims.clear();
    for (const auto& dim : problem.dims) {
      if (!is_formed(dim)) multiply.dims.push_back({dim.size, dim.out, {dim.in[0]}});
    }
    for (size_t d = form.dims.size(); d-- > 0;) {
      ProductDim& dim = form.dims[d];
      multiply.dims.push_back({dim.size, dim.out, {dim.in[0], elements}});
      dim.out = elements;
      dim.in = {dim.in[1], dim.in[2]};
      elements *= dim.size;
    }
    merge_dims(form.dims);
    merge_dims(multiply.dims);
  }

  // Adds the product of the first factor and the formed matrix in `to`.
  void run(const at::Tensor& to) {
    form.out = multiply.in[1] = {to.data_ptr(), to.scalar_type()};
    cuda_multiply_reduce(form);
    cuda_contract(multiply);
  }
};

// Products of two bfloat16 numbers are sums of two: without loss, and on tensor cores.
bool splits(const SumOfProducts& problem) {
  return problem.dtype == at::kFloat &&
         std::all_of(problem.in.begin(), problem.in.end(),
                     [](const ProductTensor& x) { return x.dtype == at::kBFloat16; });
}

void multiply(const SumOfProducts& problem) {
  Steps steps(problem);
  if (!splits(problem)) return steps.run(scratch(steps.elements, problem.dtype));
  const at::Tensor high = scratch(steps.elements, at::kBFloat16);
  const at::Tensor low = scratch(steps.elements, at::kBFloat16);
  steps.run(high);
  low.copy_(high);
  steps.form.beta = -1;
  steps.multiply.beta = 1;
  steps.run(low);
}

// Which index to cut so that less is formed at once. Every part reads the first factor again where
// that does not depend on the index, which is little as long as more is formed than read; a sum
// that is cut has its results read and written again.
size_t index_to_cut(const SumOfProducts& problem) {
  size_t kept = problem.dims.size(), summed = kept;
  double alone = static_cast<double>(item(problem.in[0].dtype));
  double formed = static_cast<double>(item(problem.dtype));
  for (size_t d = 0; d < problem.dims.size(); ++d) {
    const ProductDim& dim = problem.dims[d];
    if (dim.in[0] != 0) alone *= static_cast<double>(dim.size);
    if (!is_formed(dim)) continue;
    formed *= static_cast<double>(dim.size);
    size_t& best = dim.out != 0 ? kept : summed;
    const int64_t size = best < problem.dims.size() ? problem.dims[best].size : 1;
    if (dim.size > size) best = d;
  }
  if (kept == problem.dims.size() || summed == problem.dims.size()) return std::min(kept, summed);
  const double again = formed / static_cast<double>(kFormedBytes) * alone;
  return problem.dims[kept].in[0] != 0 || again <= formed ? kept : summed;
}

void run(const SumOfProducts& problem) {
  int64_t bytes = item(problem.dtype);
  for (const auto& dim : problem.dims) bytes *= is_formed(dim) ? dim.size : 1;
  if (bytes <= kFormedBytes) return multiply(problem);
  const size_t cut = index_to_cut(problem);
  const ProductDim dim = problem.dims[cut];
  const int64_t length =
      std::max<int64_t>(1, kFormedBytes / std::max(bytes / dim.size, int64_t{1}));
  SumOfProducts part = problem;
  for (int64_t first = 0; first < dim.size; first += length) {
    part.dims[cut].size = std::min(length, dim.size - first);
    run(part);
    for (int f = 0; f < part.factors(); ++f) advance(part.in[f], length * dim.in[f]);
    advance(part.out, length * dim.out);
    if (dim.out == 0) part.beta = 1;
  }
}

// The problem with its results in scratch memory, in the order that they have in `problem`; and
// that of moving them from there.
struct Sums {
  SumOfProducts form, move;
  at::Tensor memory;

  explicit Sums(const SumOfProducts& problem) : form(problem), move(problem) {
    form.alpha = 1;
    form.beta = 0;
    move.dims.clear();
    std::stable_sort(form.dims.begin(), form.dims.end(),
                     [](const ProductDim& x, const ProductDim& y) { return x.out < y.out; });
    int64_t results = 1;
    for (auto& dim : form.dims) {
      if (dim.out == 0) continue;
      move.dims.push_back({dim.size, dim.out, {results}});
      dim.out = results;
      results *= dim.size;
    }
    merge_dims(move.dims);
    memory = scratch(results, problem.dtype);
    form.out = {memory.data_ptr(), problem.dtype};
    move.in.assign(1, form.out);
  }
};

}  // namespace

void cuda_formed_matmul(const SumOfProducts& problem) {
  if (problem.out.dtype == problem.dtype) return run(problem);
  // What may be summed in parts is rounded at the end.
  const Sums sums(problem);
  run(sums.form);
  cuda_multiply_reduce(sums.move);
}

}  // namespace pyext
