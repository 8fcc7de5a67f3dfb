// A plan as a table: what print(plan) shows.
#include <cstdio>

#include "einsum_cost.h"
#include "einsum_plan.h"

namespace pyext {
namespace {

const char* name_of(const Step& step) {
  switch (step.lowering) {
    case Lowering::kMultiplyReduce:
      return "multiply-reduce";
    case Lowering::kContract:
      return step.problem.symmetric     ? "tiles, triangle"
             : step.problem.weighs_rows ? "tiles, weighed"
                                        : "tiles";
    default:
      return "matmul";
  }
}

template <typename... Values>
std::string line_of(const char* format, Values... values) {
  char line[256];
  std::snprintf(line, sizeof line, format, values...);
  return line;
}

}  // namespace

std::string Plan::text() const {
  const double element = static_cast<double>(c10::elementSize(arithmetic));
  std::string result = quoted(equation) + "\n";
  result += line_of("%.4g flop, %.4g bytes moved, at most %.4g bytes allocated\n", flops, bytes,
                    static_cast<double>(peak_bytes));
  if (steps.empty()) return result + "nothing to add up: the result is zero or empty\n";
  result += line_of("%-28s %-16s %10s %10s %10s %13s\n", "step", "kernel", "Mflop", "MB",
                    "floor (us)", "expected (us)");
  for (const auto& step : steps) {
    result += line_of("%-28s %-16s %10.3f %10.3f %10.2f %13.2f\n", step.text.c_str(), name_of(step),
                      step.flops / 1e6, step.bytes / 1e6,
                      1e6 * floor_seconds(step.flops, step.bytes, element), 1e6 * step.seconds);
  }
  return result;
}

}  // namespace pyext
