// einsum: checks, running a plan's steps, and the device entries.
#include "einsum.h"

#include <ATen/DeviceGuard.h>
#include <ATen/core/Formatting.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/TypeProperties.h>
#include <torch/library.h>

#include <algorithm>

#include "einsum_matmul.h"
#include "einsum_plan_cache.h"
#include "memory_overlap.h"
#include "result_memory.h"

namespace pyext {
namespace {

at::ScalarType result_dtype(at::TensorList operands, const std::string& equation,
                            const EinsumOptions& options) {
  at::native::ResultTypeState state;
  for (const auto& operand : operands) {
    state = at::native::update_result_type_state(operand, state);
  }
  const at::ScalarType dtype = at::native::result_type(state);
  // One tensor that is only summed over is as torch.sum, which counts in int64.
  if (operands.size() == 1 && c10::isIntegralType(dtype, true)) {
    std::vector<c10::IntArrayRef> shapes{operands[0].sizes()};
    const Expression expression = parse_equation(equation, shapes);
    for (const Label label : expression.inputs[0]) {
      const auto& output = expression.output;
      if (std::find(output.begin(), output.end(), label) == output.end()) return at::kLong;
    }
  }
  if (options.accumulate_dtype) {
    const at::ScalarType wide = *options.accumulate_dtype;
    TORCH_CHECK(c10::isComplexType(wide) == c10::isComplexType(dtype) &&
                    c10::isFloatingType(wide) == c10::isFloatingType(dtype) &&
                    c10::promoteTypes(wide, arithmetic_dtype(dtype)) == wide &&
                    arithmetic_dtype(wide) == wide,
                "einsum(): accumulate_dtype=", wide, " cannot hold the sums of ", dtype, "\n  ",
                quoted(equation));
  }
  return dtype;
}

// Whether the kernels read and write this dtype while they sum in `arithmetic`.
bool is_read_as(at::ScalarType dtype, at::ScalarType arithmetic) {
  return dtype == arithmetic || (arithmetic_dtype(dtype) == arithmetic &&
                                 (arithmetic == at::kFloat || arithmetic == at::kInt));
}

// A call, checked and ready to run.
struct Call {
  std::shared_ptr<const Plan> plan;
  std::vector<at::Tensor> operands;  // of dtypes that the kernels read
  at::ScalarType dtype;              // of the result; the plan's may be wider
};

Call prepare(const std::string& equation, at::TensorList operands, const EinsumOptions& options,
             const at::Tensor& out) {
  TORCH_CHECK_VALUE(!operands.empty(), "einsum(): must provide at least one operand\n  ",
                    quoted(equation));
  TORCH_CHECK_VALUE(options.layout == "contiguous" || options.layout == "any",
                    "einsum(): expected layout to be 'contiguous' or 'any', got '", options.layout,
                    "'\n  ", quoted(equation));
  for (size_t i = 1; i < operands.size(); ++i) {
    TORCH_CHECK(operands[i].device() == operands[0].device(),
                "einsum(): expected all operands on one device, got ", operands[0].device(),
                " for operand 0 and ", operands[i].device(), " for operand ", i, "\n  ",
                quoted(equation));
  }
  const at::ScalarType dtype = result_dtype(operands, equation, options);
  const at::ScalarType arithmetic = options.accumulate_dtype.value_or(arithmetic_dtype(dtype));
  Call call;
  call.dtype = dtype;
  for (const auto& operand : operands) {
    const bool reads = is_read_as(operand.scalar_type(), arithmetic);
    call.operands.push_back(reads ? operand : operand.to(arithmetic));
  }
  call.plan = find_plan(equation, call.operands, is_read_as(dtype, arithmetic) ? dtype : arithmetic,
                        arithmetic, options, out);
  return call;
}

// CPU kernels take kMaxIndices indices. Of more, which do not merge, the outermost are looped over.
void run_kernel(const KernelStub<void(const SumOfProducts&)>& kernel, c10::DeviceType device,
                const SumOfProducts& problem) {
  if (problem.dims.size() <= kMaxIndices || device != c10::DeviceType::CPU) {
    return kernel(device, problem);
  }
  const auto outermost =
      std::max_element(problem.dims.begin(), problem.dims.end(),
                       [](const ProductDim& x, const ProductDim& y) { return x.out < y.out; });
  const ProductDim dim = *outermost;
  SumOfProducts part = problem;
  part.symmetric = false;
  part.dims.erase(part.dims.begin() + (outermost - problem.dims.begin()));
  const auto advance = [](ProductTensor& x, int64_t elements) {
    x.data =
        static_cast<char*>(x.data) + elements * static_cast<int64_t>(c10::elementSize(x.dtype));
  };
  for (int64_t i = 0; i < dim.size; ++i) {
    run_kernel(kernel, device, part);
    for (int f = 0; f < part.factors(); ++f) advance(part.in[f], dim.in[f]);
    advance(part.out, dim.out);
    if (dim.out == 0) part.beta = 1;  // every index is summed over: add to what is there
  }
}

void run(const Call& call, const at::Tensor& result, const c10::Scalar& alpha,
         const c10::Scalar& beta) {
  const Plan& plan = *call.plan;
  if (result.numel() == 0) return;
  if (plan.clears && beta.equal(0)) {
    result.zero_();
  } else if (plan.clears) {
    // The steps scale what they write, and want it as it was.
    const at::Tensor written = result.as_strided(plan.written.sizes, plan.written.strides);
    const at::Tensor kept = plan.steps.empty() ? at::Tensor() : written.clone();
    result.mul_(beta);
    if (kept.defined()) written.copy_(kept);
  }
  std::vector<at::Tensor> slots = call.operands;
  for (const auto& step : plan.steps) {
    const bool last = step.result < 0;
    at::Tensor to = result;
    if (!last) {
      to = empty_result({step.elements}, result.options().dtype(plan.arithmetic));
    }
    // On a GPU the tiles' kernel calls cuBLAS itself, for all but 16-bit types.
    const bool by_torch = step.lowering == Lowering::kMatmul &&
                          (to.is_cpu() || c10::isReducedFloatingType(step.problem.out.dtype));
    if (by_torch && (!last || (alpha.equal(1) && beta.equal(0) && !plan.clears))) {
      run_matmul(step.matmul, slots[step.inputs[0]], slots[step.inputs[1]], to);
    } else {
      SumOfProducts problem = step.problem;
      for (size_t f = 0; f < step.inputs.size(); ++f) {
        // Only read: a lazy clone stays one.
        problem.in[f].data = const_cast<void*>(slots[step.inputs[f]].const_data_ptr());
      }
      problem.out.data = to.mutable_data_ptr();
      if (last) {
        problem.alpha = alpha;
        problem.beta = beta;
      }
      const auto& kernel =
          step.lowering == Lowering::kMultiplyReduce ? multiply_reduce_stub : contract_stub;
      run_kernel(kernel, result.device().type(), problem);
    }
    for (const int input : step.inputs) slots[input].reset();
    if (!last) slots.push_back(std::move(to));
  }
}

// bool is summed as integers, and complex numbers are scaled by complex ones: no other dtype may
// get what it cannot hold.
void check_scale(const char* name, const c10::Scalar& scale, at::ScalarType dtype,
                 const std::string& equation) {
  TORCH_CHECK_VALUE(c10::canCast(scale.type(), dtype == at::kBool ? at::kLong : dtype),
                    "einsum(): ", name, "=", scale, " cannot scale a result of ", dtype, "\n  ",
                    quoted(equation));
}

at::Tensor einsum_entry(c10::string_view equation, at::TensorList operands,
                        const c10::Scalar& alpha, c10::string_view layout,
                        std::optional<at::ScalarType> accumulate_dtype,
                        at::OptionalIntArrayRef path) {
  const std::string text(equation);
  const EinsumOptions options{alpha, std::string(layout), accumulate_dtype, path};
  const at::OptionalDeviceGuard guard(at::device_of(operands));
  const Call call = prepare(text, operands, options, at::Tensor());
  check_scale("alpha", alpha, call.dtype, text);
  const TensorLayout& planned = call.plan->result;
  const at::Tensor result = empty_strided_result(planned.sizes, planned.strides,
                                                 operands[0].options().dtype(planned.dtype));
  run(call, result, alpha, 0);
  return result.to(call.dtype);
}

at::Tensor& einsum_out_entry(c10::string_view equation, at::TensorList operands,
                             const c10::Scalar& alpha, const c10::Scalar& beta,
                             std::optional<at::ScalarType> accumulate_dtype,
                             at::OptionalIntArrayRef path, at::Tensor& out) {
  const std::string text(equation);
  const EinsumOptions options{alpha, "contiguous", accumulate_dtype, path};
  const at::OptionalDeviceGuard guard(at::device_of(operands));
  // Without it first: that says what is wrong with the equation before what is wrong with out.
  const at::ScalarType dtype =
      operands.empty() ? at::kFloat : result_dtype(operands, text, options);
  std::vector<c10::IntArrayRef> shapes;
  for (const auto& operand : operands) shapes.push_back(operand.sizes());
  const Expression expression = parse_equation(text, shapes);
  c10::SmallVector<int64_t, 6> sizes;
  for (const Label label : expression.output) sizes.push_back(expression.sizes.at(label));
  TORCH_CHECK(out.sizes() == c10::IntArrayRef(sizes), "einsum(): expected out of shape ",
              c10::IntArrayRef(sizes), ", got ", out.sizes(), "\n  ", quoted(text));
  TORCH_CHECK(out.scalar_type() == dtype, "einsum(): expected out of dtype ", dtype, ", got ",
              out.scalar_type(), "\n  ", quoted(text));
  TORCH_CHECK(out.device() == operands[0].device(), "einsum(): expected out on ",
              operands[0].device(), ", got ", out.device(), "\n  ", quoted(text));
  TORCH_CHECK(!overlaps_itself(out),
              "einsum(): out has elements that share memory; clone it first\n  ", quoted(text));
  for (size_t i = 0; i < operands.size(); ++i) {
    TORCH_CHECK(!overlaps(out, operands[i]), "einsum(): out overlaps operand ", i, " in memory\n  ",
                quoted(text));
  }
  check_scale("alpha", alpha, dtype, text);
  check_scale("beta", beta, dtype, text);
  const at::ScalarType arithmetic = accumulate_dtype.value_or(arithmetic_dtype(dtype));
  if (is_read_as(dtype, arithmetic)) {
    run(prepare(text, operands, options, out), out, alpha, beta);
  } else {
    const at::Tensor sums = out.to(arithmetic);
    run(prepare(text, operands, options, sums), sums, alpha, beta);
    out.copy_(sums);
  }
  return out;
}

void register_einsum(torch::Library& m) {
  m.impl("einsum", einsum_entry);
  m.impl("einsum.out", einsum_out_entry);
}

TORCH_LIBRARY_IMPL(pyext, CPU, m) { register_einsum(m); }
TORCH_LIBRARY_IMPL(pyext, CUDA, m) { register_einsum(m); }

}  // namespace

std::shared_ptr<const Plan> einsum_plan(const std::string& equation, at::TensorList operands,
                                        const EinsumOptions& options,
                                        const std::optional<at::Tensor>& out) {
  return prepare(equation, operands, options, out.value_or(at::Tensor())).plan;
}

at::Tensor einsum(const std::string& equation, at::TensorList operands,
                  const EinsumOptions& options) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyext::einsum", "")
                             .typed<decltype(einsum_entry)>();
  return op.call(equation, operands, options.alpha, options.layout, options.accumulate_dtype,
                 options.path);
}

at::Tensor& einsum_out(const std::string& equation, at::TensorList operands,
                       const c10::Scalar& beta, const EinsumOptions& options, at::Tensor& out) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyext::einsum", "out")
                             .typed<decltype(einsum_out_entry)>();
  return op.call(equation, operands, options.alpha, beta, options.accumulate_dtype, options.path,
                 out);
}

}  // namespace pyext
