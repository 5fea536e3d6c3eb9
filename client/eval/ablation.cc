#include "client/eval/ablation.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/eval/option_setting.h"
#include "client/eval/task.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr size_t kSizes[] = {20, 50, 100, 200, 500, 1000, 2000, 5000};

std::string LayerRange(uint32_t first, uint32_t last) {
  return first == last ? absl::StrCat(first) : absl::StrCat(first, "-", last);
}

// The variables that are one field of the options.
struct FieldVariable {
  const char* name;
  const char* field;
  std::vector<std::string> values;
};

const std::vector<FieldVariable>& FieldVariables() {
  static const auto& variables = *new std::vector<FieldVariable>{
      {"k", "k", {"1", "2", "3", "5", "8", "12", "16", "24"}},
      {"epsilon", "epsilon", {"0.6", "0.7", "0.8", "0.9", "1.0", "1.1"}},
      {"kernel", "kernel", {"gaussian", "linear", "polynomial", "matern"}},
      {"steps", "steps", {"1", "2", "3", "5", "8", "10", "15", "20"}},
      {"learning-rate", "learning_rate", {"0.025", "0.05", "0.1", "0.2", "0.4", "0.8"}},
      {"rule", "application_rule", {"last_prompt_token", "every_new_token", "router_shift"}},
      {"prompt-positions", "prompt_positions", {"1", "4", "16", "64", "128"}},
      {"selection", "reference_selection", {"successful", "all"}},
      {"objective", "objective", {"answer", "choices", "pairs"}},
      {"trust", "trust", {"0", "0.03", "0.1", "0.3", "1", "3", "10"}},
      {"step-rule", "step_rule", {"gradient", "normalized", "adam"}},
      {"balance", "balance", {"false", "true"}},
      {"neighborhoods", "neighborhoods", {"1", "2", "3", "4", "6"}},
      {"neighbor-source", "neighbor_source", {"embedding", "critical_layer", "last_layer"}},
  };
  return variables;
}

std::vector<std::string> Numbers(uint32_t first, uint32_t last) {
  std::vector<std::string> numbers;
  for (uint32_t number = first; number <= last; ++number) numbers.push_back(absl::StrCat(number));
  return numbers;
}

// 4, 8, 16, ... below all; then 0, which is all.
std::vector<std::string> CoreExpertValues(uint32_t experts) {
  std::vector<std::string> values;
  for (uint32_t count = 4; count < experts; count *= 2) values.push_back(absl::StrCat(count));
  if (experts > 20) values.push_back("20");
  std::sort(values.begin(), values.end(), [](const std::string& a, const std::string& b) {
    return a.size() != b.size() ? a.size() < b.size() : a < b;
  });
  values.push_back("0");
  return values;
}

std::vector<std::string> SizeValues(size_t references) {
  std::vector<std::string> values;
  for (const size_t size : kSizes) {
    if (size < references) values.push_back(absl::StrCat(size));
  }
  values.push_back("all");
  return values;
}

absl::StatusOr<std::vector<std::string>> DefaultValues(absl::string_view variable,
                                                       const v1::GetServerInfoResponse& server, size_t references) {
  const uint32_t layers = server.model().moe_layers();
  if ((variable == "layers-suffix" || variable == "layers-single") && layers == 0) {
    return absl::InvalidArgumentError("the server's model has no MoE layers to vary");
  }
  if (variable == "layers-suffix") return Numbers(1, layers);
  if (variable == "layers-single") return Numbers(0, layers - 1);
  if (variable == "core-experts") return CoreExpertValues(server.model().experts());
  if (variable == "reference-set-size") return SizeValues(references);
  for (const FieldVariable& known : FieldVariables()) {
    if (variable == known.name) return known.values;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("variable ", variable, " is none of ", absl::StrJoin(AblationVariables(), ", ")));
}

absl::Status ValueError(absl::string_view variable, absl::string_view value, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(variable, " ", value, ": ", why));
}

// Sets the variable's value in one point's method and gives the point's label.
absl::StatusOr<std::string> ApplyValue(absl::string_view variable, const std::string& value,
                                       const v1::GetServerInfoResponse& server, EvalMethod* method,
                                       std::vector<size_t>* sizes) {
  const uint32_t layers = server.model().moe_layers();
  uint32_t number = 0;
  const bool is_number = absl::SimpleAtoi(value, &number);
  if (variable == "layers-suffix") {
    if (!is_number || number < 1 || number > layers) {
      return ValueError(variable, value, absl::StrCat("must be in [1, ", layers, "]"));
    }
    C3PO_RETURN_IF_ERROR(SetOption("critical_layers", LayerRange(layers - number, layers - 1), &method->optimization));
    return LayerRange(layers - number, layers - 1);
  }
  if (variable == "layers-single") {
    if (!is_number || number >= layers) return ValueError(variable, value, absl::StrCat("must be below ", layers));
    C3PO_RETURN_IF_ERROR(SetOption("critical_layers", value, &method->optimization));
    return value;
  }
  if (variable == "core-experts") {
    if (!is_number) return ValueError(variable, value, "is no number");
    method->optimization.set_core_experts(number);
    return number == 0 ? std::string("all") : value;
  }
  if (variable == "reference-set-size") {
    if (value == "all") return value;
    if (!is_number || number == 0) return ValueError(variable, value, "is neither a number above 0 nor all");
    method->collection_suffix = SizeSuffix(number);
    sizes->push_back(number);
    return value;
  }
  for (const FieldVariable& known : FieldVariables()) {
    if (variable == known.name) C3PO_RETURN_IF_ERROR(SetOption(known.field, value, &method->optimization));
  }
  return value;
}

// The number that the axis shows: how many experts or references "all" are.
std::string AxisValue(absl::string_view variable, const std::string& value, const v1::GetServerInfoResponse& server,
                      size_t references) {
  if (variable == "core-experts" && value == "0") return absl::StrCat(server.model().experts());
  if (variable == "reference-set-size" && value == "all") return absl::StrCat(references);
  return value;
}

}  // namespace

std::vector<std::string> AblationVariables() {
  return {"layers-suffix", "layers-single",    "core-experts", "k",         "epsilon",       "kernel",
          "steps",         "learning-rate",    "rule",         "selection", "objective",     "reference-set-size",
          "step-rule",     "prompt-positions", "trust",        "balance",   "neighborhoods", "neighbor-source"};
}

absl::StatusOr<AblationPlan> PlanAblation(absl::string_view variable, absl::Span<const std::string> values,
                                          const EvalMethod& base, const v1::GetServerInfoResponse& server,
                                          size_t references) {
  C3PO_ASSIGN_OR_RETURN(std::vector<std::string> points, DefaultValues(variable, server, references));
  if (!values.empty()) points.assign(values.begin(), values.end());
  AblationPlan plan;
  plan.axis.variable = std::string(variable);
  plan.axis.name = absl::StrCat(variable, " of ", base.label);
  EvalMethod none;
  none.label = "none";
  none.optimization.set_method(v1::METHOD_NONE);
  plan.methods.push_back(std::move(none));
  for (const std::string& value : points) {
    EvalMethod method = base;
    C3PO_ASSIGN_OR_RETURN(const std::string label, ApplyValue(variable, value, server, &method, &plan.sizes));
    method.label = absl::StrCat(variable, "=", label);
    plan.axis.points.push_back({label, AxisValue(variable, value, server, references), method.label});
    plan.methods.push_back(std::move(method));
  }
  return plan;
}

std::string SizeSuffix(size_t size) { return absl::StrCat(".size", size); }

std::vector<v1::ReferenceSample> ReferenceSubset(absl::Span<const v1::ReferenceSample> samples, size_t size,
                                                 uint64_t seed) {
  std::vector<v1::ReferenceSample> subset;
  for (const size_t index : ShuffledOrder(samples.size(), seed)) {
    if (subset.size() == size) break;
    subset.push_back(samples[index]);
  }
  return subset;
}

}  // namespace c3po
