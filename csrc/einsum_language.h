// The language of einsum: what an equation says, checked against the operands it is meant for.
#pragma once

#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace pyext {

// A letter's code point; the dimensions of an ellipsis are negative, the last of them -1.
using Label = int32_t;
using Labels = std::vector<Label>;

struct Expression {
  std::vector<Labels> inputs;  // one label per dimension of each operand
  Labels output;               // labels may repeat here too: i->ii makes a diagonal matrix
  std::unordered_map<Label, int64_t> sizes;
};

// Parses an equation for operands of these shapes. Raises RuntimeError, with the equation and a
// mark under the place, for what does not fit.
Expression parse_equation(const std::string& equation, const std::vector<c10::IntArrayRef>& shapes);
// The same for operands of these ranks, where sizes are not known or do not matter.
Expression parse_labels(const std::string& equation, const std::vector<int64_t>& ranks);

// How a label is written: a letter, or the place in an ellipsis.
std::string label_text(Label label);
std::string labels_text(const Labels& labels);
// The same with a letter for every label: dimensions of an ellipsis get letters of their own.
std::string letters_text(const Labels& labels);

// An equation, with as much of it as fits into a line.
std::string quoted(const std::string& equation);

}  // namespace pyext
