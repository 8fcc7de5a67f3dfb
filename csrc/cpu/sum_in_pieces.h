// A long sum as the sum of sums of its pieces.
#pragma once

#include <c10/util/FunctionRef.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "contraction.h"
#include "cpu/blocks.h"

namespace pyext {
namespace {

// Forms the sum in `pieces` along an index, each with a result of its own, and adds those up in
// their order. Of the indices that are long enough it is the one that the first factor has furthest
// apart, which leaves its runs whole.
inline void sum_in_pieces(const SumOfProducts& problem, int64_t pieces,
                          c10::function_ref<void(const SumOfProducts&)> kernel) {
  const auto suits = [&](const ProductDim& dim) {
    return std::pair(dim.out == 0 ? std::min(dim.size, pieces) : 0, std::abs(dim.in[0]));
  };
  const auto best =
      std::max_element(problem.dims.begin(), problem.dims.end(),
                       [&](const auto& x, const auto& y) { return suits(x) < suits(y); });
  const auto cut = static_cast<size_t>(best - problem.dims.begin());
  const ProductDim split = problem.dims[cut];
  pieces = std::min(pieces, split.size);
  const int64_t length = split.size / pieces, rest = split.size % pieces;

  SumOfProducts part = problem, total;
  part.alpha = 1;
  part.beta = 0;
  int64_t results = 1;
  for (auto& dim : part.dims) {
    if (dim.out == 0) continue;
    total.dims.push_back({dim.size, dim.out, {results}});
    dim.out = results;
    results *= dim.size;
  }
  const auto bytes = results * static_cast<int64_t>(c10::elementSize(problem.dtype));
  const auto sums = make_scratch<char>((pieces + 1) * bytes);
  part.out = {sums.get(), problem.dtype};
  part.dims[cut].size = length;
  part.dims.push_back({pieces, results, split.in});
  for (auto& step : part.dims.back().in) step *= length;
  kernel(part);
  if (rest > 0) {
    part.dims.pop_back();
    part.dims[cut].size = rest;
    for (int f = 0; f < part.factors(); ++f) {
      auto& x = part.in[f];
      x.data = static_cast<char*>(x.data) +
               pieces * length * split.in[f] * static_cast<int64_t>(c10::elementSize(x.dtype));
    }
    part.out.data = sums.get() + pieces * bytes;
    kernel(part);
  }
  total.in.push_back({sums.get(), problem.dtype});
  total.out = problem.out;
  total.dtype = problem.dtype;
  total.alpha = problem.alpha;
  total.beta = problem.beta;
  total.dims.push_back({pieces + (rest > 0), 0, {results}});
  multiply_reduce_stub(at::kCPU, total);
}

}  // namespace
}  // namespace pyext
