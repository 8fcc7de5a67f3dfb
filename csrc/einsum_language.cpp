// The parser of einsum equations. Messages follow torch.einsum's where both notice the same.
#include "einsum_language.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <set>
#include <sstream>

namespace pyext {
namespace {

constexpr size_t kLine = 160;

// A term of the equation: an operand's labels, or the output's.
struct Term {
  Labels before, after;        // of the ellipsis
  std::vector<size_t> places;  // of each label in the equation, in order
  bool ellipsis = false;
  size_t begin = 0;  // where it starts in the equation

  size_t letters() const { return before.size() + after.size(); }
};

class Parser {
 public:
  Parser(const std::string& equation, const std::vector<c10::IntArrayRef>& shapes)
      : text_(equation), shapes_(shapes) {}

  Expression parse() {
    TORCH_CHECK_VALUE(!shapes_.empty(), "einsum(): must provide at least one operand\n  ",
                      quoted(text_));
    read_inputs();
    Expression result;
    for (size_t i = 0; i < inputs_.size(); ++i) result.inputs.push_back(labels_of(i, result.sizes));
    result.output = has_output_ ? explicit_output(result.sizes) : implicit_output();
    check_sizes(result);
    return result;
  }

 private:
  template <typename... Parts>
  [[noreturn]] void fail(size_t place, const Parts&... parts) const {
    std::ostringstream message;
    message << "einsum(): ";
    (message << ... << parts);
    // Near the place, when the equation is long.
    const size_t begin = text_.size() <= kLine ? 0 : place - std::min(place, kLine / 2);
    const std::string line = text_.substr(begin, kLine);
    size_t column = 0;  // in characters: letters may take several bytes
    for (size_t i = begin; i < place && i < text_.size(); ++i) column += !is_continuation(text_[i]);
    message << "\n  " << (begin > 0 ? "..." : "") << line
            << (begin + kLine < text_.size() ? "..." : "") << "\n  "
            << std::string(column + (begin > 0 ? 3 : 0), ' ') << "^";
    TORCH_CHECK(false, message.str());
  }

  static bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

  // The letter at `at_`, which moves past it: ASCII, or any other in UTF-8.
  Label read_letter() {
    const auto byte = static_cast<unsigned char>(text_[at_]);
    const size_t place = at_++;
    if (byte < 0x80) {
      if (!std::isalpha(byte)) {
        fail(place, "invalid subscript given at index ", place,
             " in the equation string, subscripts must be in [a-zA-Z]");
      }
      return byte;
    }
    Label point = byte >= 0xf0 ? byte & 0x07 : byte >= 0xe0 ? byte & 0x0f : byte & 0x1f;
    while (at_ < text_.size() && is_continuation(text_[at_])) {
      point = point << 6 | (static_cast<unsigned char>(text_[at_++]) & 0x3f);
    }
    return point;
  }

  // Reads labels up to a comma, an arrow or the end. `who` names the term in messages.
  Term read_term(const std::string& who, bool is_output) {
    Term term;
    term.begin = at_;
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == ' ') {
        ++at_;
      } else if (!is_output && (c == ',' || c == '-')) {
        break;
      } else if (c == '.') {
        if (term.ellipsis) {
          fail(at_, "found '.' for ", who,
               is_output ? " but an ellipsis (...) was already found"
                         : " for which an ellipsis was already found");
        }
        if (text_.compare(at_, 3, "...") != 0) {
          fail(at_, "found '.' for ", who, " that is not part of any ellipsis",
               is_output ? " (...)" : "");
        }
        term.ellipsis = true;
        at_ += 3;
      } else {
        term.places.push_back(at_);
        (term.ellipsis ? term.after : term.before).push_back(read_letter());
      }
    }
    return term;
  }

  void read_inputs() {
    for (;;) {
      if (inputs_.size() == shapes_.size()) {
        fail(at_, "fewer operands were provided than specified in the equation: ", shapes_.size());
      }
      inputs_.push_back(read_term("operand " + std::to_string(inputs_.size()), false));
      if (at_ == text_.size()) break;
      if (text_[at_] == '-') {
        if (text_.compare(at_, 2, "->") != 0) {
          fail(at_, "found '-' that is not part of an arrow '->'");
        }
        at_ += 2;
        has_output_ = true;
        output_ = read_term("output", true);
        break;
      }
      ++at_;  // a comma
    }
    if (inputs_.size() < shapes_.size()) {
      fail(text_.size(),
           "more operands were provided than specified in the equation: ", shapes_.size(), " for ",
           inputs_.size());
    }
  }

  Labels labels_of(size_t operand, std::unordered_map<Label, int64_t>& sizes) {
    const Term& term = inputs_[operand];
    const auto shape = shapes_[operand];
    if (!term.ellipsis && term.letters() != shape.size()) {
      fail(term.begin, "the number of subscripts in the equation (", term.letters(),
           ") does not match the number of dimensions (", shape.size(), ") for operand ", operand,
           " and no ellipsis was given");
    }
    if (term.letters() > shape.size()) {
      fail(term.begin, "the number of subscripts in the equation (", term.letters(),
           ") is more than the number of dimensions (", shape.size(), ") for operand ", operand);
    }
    const auto hidden = static_cast<Label>(shape.size() - term.letters());
    if (term.ellipsis) ellipsis_ = std::max(ellipsis_, hidden);
    Labels labels = term.before;
    for (Label i = hidden; i > 0; --i) labels.push_back(-i);
    labels.insert(labels.end(), term.after.begin(), term.after.end());
    std::unordered_map<Label, int64_t> own;
    for (size_t i = 0; i < labels.size(); ++i) {
      const Label label = labels[i];
      const size_t letter = i < term.before.size() ? i : i - static_cast<size_t>(hidden);
      const size_t place =
          label < 0 ? term.begin : term.places[std::min(letter, term.places.size() - 1)];
      const auto [mine, fresh] = own.emplace(label, shape[i]);
      if (!fresh && mine->second != shape[i]) {
        fail(place, "subscript ", label_text(label), " is repeated for operand ", operand,
             " but the sizes don't match, ", shape[i], " != ", mine->second);
      }
      auto& size = sizes.emplace(label, 1).first->second;
      if (shape[i] == 1) continue;
      if (size != 1 && size != shape[i]) {
        fail(place, "subscript ", label_text(label), " has size ", shape[i], " for operand ",
             operand, " which does not broadcast with previously seen size ", size);
      }
      size = shape[i];
    }
    return labels;
  }

  Labels explicit_output(const std::unordered_map<Label, int64_t>& sizes) const {
    for (size_t i = 0; i < output_.letters(); ++i) {
      const Label label =
          i < output_.before.size() ? output_.before[i] : output_.after[i - output_.before.size()];
      if (!sizes.count(label)) {
        fail(output_.places[i], "output subscript ", label_text(label),
             " does not appear in the equation for any input operand");
      }
    }
    Labels labels = output_.before;
    if (output_.ellipsis) {
      for (Label i = ellipsis_; i > 0; --i) labels.push_back(-i);
    }
    labels.insert(labels.end(), output_.after.begin(), output_.after.end());
    return labels;
  }

  // Ellipses first, then the labels that appear once, in the alphabet's order.
  Labels implicit_output() const {
    std::set<Label> once, seen;
    for (const auto& term : inputs_) {
      for (const auto* part : {&term.before, &term.after}) {
        for (const Label label : *part) {
          if (!seen.insert(label).second) {
            once.erase(label);
          } else {
            once.insert(label);
          }
        }
      }
    }
    Labels labels;
    for (Label i = ellipsis_; i > 0; --i) labels.push_back(-i);
    labels.insert(labels.end(), once.begin(), once.end());
    return labels;
  }

  void check_sizes(const Expression& expression) const {
    int64_t count = 1;
    for (const Label label : expression.output) {
      if (expression.sizes.at(label) == 0) return;
    }
    for (const Label label : expression.output) {
      if (__builtin_mul_overflow(count, expression.sizes.at(label), &count) ||
          count > INT64_MAX / 16) {
        fail(has_output_ ? output_.begin : text_.size(),
             "the result has more elements than 63 bits can count");
      }
    }
  }

  const std::string& text_;
  const std::vector<c10::IntArrayRef>& shapes_;
  size_t at_ = 0;
  std::vector<Term> inputs_;
  Term output_;
  bool has_output_ = false;
  Label ellipsis_ = 0;  // the most dimensions that an ellipsis stands for
};

}  // namespace

Expression parse_equation(const std::string& equation,
                          const std::vector<c10::IntArrayRef>& shapes) {
  return Parser(equation, shapes).parse();
}

Expression parse_labels(const std::string& equation, const std::vector<int64_t>& ranks) {
  std::vector<std::vector<int64_t>> ones;
  for (const int64_t rank : ranks) ones.emplace_back(rank, 1);
  return parse_equation(equation, {ones.begin(), ones.end()});
}

std::string label_text(Label label) {
  if (label < 0) return "...[" + std::to_string(label) + "]";
  std::string text;
  if (label < 0x80) {
    text += static_cast<char>(label);
  } else if (label < 0x800) {
    text += static_cast<char>(0xc0 | label >> 6);
    text += static_cast<char>(0x80 | (label & 0x3f));
  } else {
    if (label < 0x10000) {
      text += static_cast<char>(0xe0 | label >> 12);
    } else {
      text += static_cast<char>(0xf0 | label >> 18);
      text += static_cast<char>(0x80 | (label >> 12 & 0x3f));
    }
    text += static_cast<char>(0x80 | (label >> 6 & 0x3f));
    text += static_cast<char>(0x80 | (label & 0x3f));
  }
  return text;
}

std::string labels_text(const Labels& labels) {
  std::string text;
  for (size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] >= 0) {
      text += label_text(labels[i]);
    } else if (i == 0 || labels[i - 1] >= 0) {
      text += "...";
    }
  }
  return text;
}

std::string letters_text(const Labels& labels) {
  constexpr Label kFree = 0xe000;  // where Unicode leaves letters for private use
  std::string text;
  for (const Label label : labels) text += label_text(label < 0 ? kFree - 1 - label : label);
  return text;
}

std::string quoted(const std::string& equation) {
  return equation.size() <= kLine ? equation : equation.substr(0, kLine) + "...";
}

}  // namespace pyext
