// Contractions of integers on CUDA: sums in int32 or int64, exact modulo 2^bits. Few results with
// long sums are formed in pieces.
#include "einsum.cuh"
#include "einsum_groups.cuh"
#include "einsum_integers.cuh"

namespace pyext {
namespace {

constexpr int64_t kManyBlocks = 256;
constexpr int64_t kLeastDepth = 256;  // of a piece

// `sums`: where those of several pieces go, each piece's in the order of the groups.
template <typename Element>
void multiply(const SumOfProducts& problem, const Groups& groups, int64_t pieces, void* sums) {
  using acc_t = SumType<Element>;
  IntegerProduct<acc_t> p;
  int count = 0;
  int64_t results = 1;
  const auto add = [&](const Group& group, int& dims, int64_t& size) {
    dims = static_cast<int>(group.dims.size());
    size = group.size();
    for (auto dim = group.dims.rbegin(); dim != group.dims.rend(); ++dim) {
      TORCH_CHECK(count < kMaxDims, "einsum(): expected at most ", kMaxDims,
                  " indices of more than one value");
      p.dims[count] = LoopDim(*dim);
      if (sums != nullptr && dim->out != 0) {
        p.dims[count].out = results;
        results *= dim->size;
      }
      ++count;
    }
  };
  add(groups.batch, p.batch_dims, p.batches);
  add(groups.m, p.m_dims, p.m);
  add(groups.n, p.n_dims, p.n);
  add(groups.k, p.k_dims, p.k);
  p.a = {problem.in[kA].data, problem.in[kA].dtype, false};
  p.b = {problem.in[kB].data, problem.in[kB].dtype, false};
  p.a_by_depth = groups.k.least_stride(kA) < groups.m.least_stride(kA);
  p.b_by_depth = groups.k.least_stride(kB) < groups.n.least_stride(kB);
  p.m_tiles = (p.m + kTile - 1) / kTile;
  p.n_tiles = (p.n + kTile - 1) / kTile;
  p.piece_depth = (p.k + pieces - 1) / pieces;
  p.piece_stride = results;
  p.out = sums != nullptr ? Result<acc_t>{sums, problem.dtype} : result_of<acc_t>(problem);
  launch(integer_product_kernel<Element>, p.batches * p.m_tiles * p.n_tiles, pieces, p);
}

void multiply(const SumOfProducts& problem, const Groups& groups, int64_t pieces, void* sums) {
  if (problem.dtype == at::kLong) return multiply<int64_t>(problem, groups, pieces, sums);
  multiply<Mixed<uint32_t>>(problem, groups, pieces, sums);
}

void contract(const SumOfProducts& problem) {
  Groups groups(problem);
  groups.batch.sort_by(kOut);
  groups.m.sort_by(kOut);
  groups.n.sort_by(kOut);
  groups.k.sort_by(kA);
  const auto tiles = [](const Group& group) { return (group.size() + kTile - 1) / kTile; };
  const int64_t blocks = groups.batch.size() * tiles(groups.m) * tiles(groups.n);
  int64_t pieces = std::min(kManyBlocks / blocks, groups.k.size() / kLeastDepth);
  if (pieces < 2) return multiply(problem, groups, 1, nullptr);
  const int64_t depth = (groups.k.size() + pieces - 1) / pieces;
  pieces = (groups.k.size() + depth - 1) / depth;

  const at::Tensor sums = scratch(pieces * groups.size(kOut), problem.dtype);
  multiply(problem, groups, pieces, sums.data_ptr());
  SumOfProducts total = problem;
  total.in.assign(1, {sums.data_ptr(), problem.dtype});
  total.dims.clear();
  int64_t results = 1;
  for (const Group* group : {&groups.batch, &groups.m, &groups.n}) {
    for (auto dim = group->dims.rbegin(); dim != group->dims.rend(); ++dim) {
      total.dims.push_back({dim->size, dim->out, {results}});
      results *= dim->size;
    }
  }
  total.dims.push_back({pieces, 0, {results}});
  merge_dims(total.dims);
  cuda_multiply_reduce(total);
}

}  // namespace

void cuda_integer_matmul(const SumOfProducts& problem) {
  // Neighbouring threads write neighbours in N.
  const Groups groups(problem);
  if (groups.n.least_stride(kOut) <= groups.m.least_stride(kOut)) return contract(problem);
  SumOfProducts turned = problem;
  std::swap(turned.in[kA], turned.in[kB]);
  for (auto& dim : turned.dims) std::swap(dim.in[kA], dim.in[kB]);
  contract(turned);
}

}  // namespace pyext
