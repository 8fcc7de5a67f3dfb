// Plans are made once for operands that lie alike, and kept.
#include "einsum_plan_cache.h"

#include <mutex>
#include <unordered_map>

namespace pyext {
namespace {

// Everything that a plan depends on but the equation, as numbers.
struct PlanKey {
  std::string equation;
  c10::SmallVector<int64_t, 48> numbers;
  bool operator==(const PlanKey& other) const {
    return numbers == other.numbers && equation == other.equation;
  }
};

struct PlanKeyHash {
  size_t operator()(const PlanKey& key) const {
    size_t hash = std::hash<std::string>()(key.equation);
    for (const int64_t number : key.numbers) {
      hash = (hash ^ static_cast<size_t>(number)) * size_t{0x9e3779b97f4a7c15};
      hash ^= hash >> 29;
    }
    return hash;
  }
};

void add_layout(PlanKey& key, const at::Tensor& x) {
  key.numbers.push_back(static_cast<int64_t>(x.scalar_type()) << 32 | x.dim());
  key.numbers.append(x.sizes().begin(), x.sizes().end());
  key.numbers.append(x.strides().begin(), x.strides().end());
}

bool is_same(const at::Tensor& a, const at::Tensor& b) {
  return a.const_data_ptr() == b.const_data_ptr() && a.const_data_ptr() != nullptr &&
         a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.strides() == b.strides();
}

}  // namespace

std::shared_ptr<const Plan> find_plan(const std::string& equation, at::TensorList operands,
                                      at::ScalarType dtype, at::ScalarType arithmetic,
                                      const EinsumOptions& options, const at::Tensor& out) {
  constexpr size_t kCapacity = 4096;
  static std::mutex mutex;
  static std::unordered_map<PlanKey, std::shared_ptr<const Plan>, PlanKeyHash> plans;
  const bool any = options.layout == "any";
  const bool same = operands.size() == 2 && is_same(operands[0], operands[1]);
  PlanKey key{equation, {}};
  key.numbers.push_back(static_cast<int64_t>(operands.size()) << 4 | int64_t{out.defined()} << 2 |
                        int64_t{any} << 1 | int64_t{same});
  key.numbers.push_back(static_cast<int64_t>(dtype) << 32 | static_cast<int64_t>(arithmetic));
  for (const auto& operand : operands) add_layout(key, operand);
  if (out.defined()) add_layout(key, out);
  if (options.path) key.numbers.append(options.path->begin(), options.path->end());
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto found = plans.find(key); found != plans.end()) return found->second;
  }
  PlanRequest request{equation, {}, dtype, arithmetic, std::nullopt, any, same, {}};
  for (const auto& operand : operands) request.operands.push_back(layout_of(operand));
  if (out.defined()) request.out = layout_of(out);
  if (options.path) request.path.assign(options.path->begin(), options.path->end());
  auto plan = std::make_shared<const Plan>(make_plan(request));
  const std::lock_guard<std::mutex> lock(mutex);
  if (plans.size() >= kCapacity) plans.clear();  // a program with ever new shapes
  plans.emplace(std::move(key), plan);
  return plan;
}

}  // namespace pyext
