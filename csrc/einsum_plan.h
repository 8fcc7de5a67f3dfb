// The plan of an einsum: which steps, in which order, each lowered to the cheapest kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "contraction.h"
#include "einsum_language.h"
#include "einsum_lowering.h"

namespace pyext {

struct PlanRequest {
  std::string equation;
  std::vector<TensorLayout> operands;
  at::ScalarType dtype;       // of the result
  at::ScalarType arithmetic;  // of the sums; see SumOfProducts::dtype
  std::optional<TensorLayout> out;
  bool any_layout = false;    // the result may have any strides
  bool same_operand = false;  // two operands that are one tensor
  // Pairs of positions to contract, as numpy.einsum_path numbers them; empty: chosen here.
  std::vector<int64_t> path;
};

enum class Lowering {
  kMultiplyReduce,  // one fused pass
  kContract,        // tiles
  kMatmul,          // torch's matrix product, where BLAS takes the factors as they lie
};

struct Step {
  Lowering lowering;
  std::vector<int> inputs;  // slots: the operands first, then the results of steps
  int result;
  SumOfProducts problem;  // without pointers
  MatmulViews matmul;     // if that is the lowering
  int64_t elements = 0;   // of an intermediate result
  std::string text;       // such as "ij,jk->ik"
  double flops = 0, bytes = 0, seconds = 0;
};

struct Plan {
  std::string equation;
  std::vector<Step> steps;
  // The result, in the order of the output's labels.
  TensorLayout result;
  TensorLayout written;  // the elements of it that the steps write: all, or a diagonal
  at::ScalarType arithmetic;
  bool clears = false;  // the result is only its diagonal, or a sum of nothing
  double flops = 0, bytes = 0;
  int64_t peak_bytes = 0;  // of intermediates and the result

  // A table of the steps, with their predicted time and the floor.
  std::string text() const;
};

// Raises RuntimeError for equations that do not fit, and for intermediates that are too large.
Plan make_plan(const PlanRequest& request);

// Which arithmetic the values of a dtype are summed in.
at::ScalarType arithmetic_dtype(at::ScalarType dtype);

}  // namespace pyext
