// What Python asks of the einsum engine: a call that costs less than one through torch.ops, the
// letters of an equation, and plans.
#include "bind_einsum.h"

#include <pybind11/stl.h>

#include "einsum.h"

namespace pyext {
namespace {

namespace py = pybind11;

// Every operand's labels and the output's, a letter each: for fake kernels and batching rules.
std::pair<std::vector<std::string>, std::string> einsum_letters(const std::string& equation,
                                                                const std::vector<int64_t>& ranks) {
  std::vector<std::vector<int64_t>> ones;
  for (const int64_t rank : ranks) ones.emplace_back(rank, 1);
  const Expression expression = parse_equation(equation, {ones.begin(), ones.end()});
  std::vector<std::string> inputs;
  for (const auto& labels : expression.inputs) inputs.push_back(letters_text(labels));
  return {inputs, letters_text(expression.output)};
}

at::Tensor call(const std::string& equation, const std::vector<at::Tensor>& operands) {
  const py::gil_scoped_release no_gil;
  return einsum(equation, operands);
}

std::shared_ptr<const Plan> plan_of(const std::string& equation,
                                    const std::vector<at::Tensor>& operands,
                                    std::optional<at::ScalarType> accumulate_dtype,
                                    const std::string& layout, const std::vector<int64_t>& path) {
  EinsumOptions options;
  options.accumulate_dtype = accumulate_dtype;
  options.layout = layout;
  if (!path.empty()) options.path = path;
  return einsum_plan(equation, operands, options);
}

}  // namespace

void bind_einsum(py::module_& m) {
  py::class_<Plan, std::shared_ptr<Plan>>(m, "EinsumPlan")
      .def_readonly("flops", &Plan::flops)
      .def_readonly("bytes", &Plan::bytes)
      .def_readonly("peak_bytes", &Plan::peak_bytes)
      .def("__str__", &Plan::text);
  m.def(
      "einsum_plan",
      [](const std::string& equation, const std::vector<at::Tensor>& operands,
         std::optional<at::ScalarType> accumulate_dtype, const std::string& layout,
         const std::vector<int64_t>& path) {
        // pybind11 holds objects by pointers to non-const; nothing of a plan can be written.
        return std::const_pointer_cast<Plan>(
            plan_of(equation, operands, accumulate_dtype, layout, path));
      },
      py::arg("equation"), py::arg("operands"), py::kw_only(),
      py::arg("accumulate_dtype") = std::nullopt, py::arg("layout") = "contiguous",
      py::arg("path") = std::vector<int64_t>{});
  m.def("einsum", &call, py::arg("equation"), py::arg("operands"));
  m.def("einsum_letters", &einsum_letters, py::arg("equation"), py::arg("ranks"));
}

}  // namespace pyext
