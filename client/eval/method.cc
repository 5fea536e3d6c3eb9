#include "client/eval/method.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "client/eval/option_setting.h"
#include "index/base/number_text.h"
#include "index/base/status_macros.h"
#include "index/types/optimization_options.h"

namespace c3po {
namespace {

constexpr absl::string_view kOffset = "offset", kPlusOffset = "+offset";
constexpr uint32_t kPaperLayers = 5;
constexpr uint32_t kPaperCoreExperts = 20;

// What the paper's method and the public code share. Nothing is left to the server's defaults.
v1::OptimizationOptions PaperOptions(const v1::ModelInfo& model) {
  v1::OptimizationOptions options;
  options.set_k(3);
  for (uint32_t layer = model.moe_layers() - std::min(kPaperLayers, model.moe_layers()); layer < model.moe_layers();
       ++layer) {
    options.add_critical_layers(layer);
  }
  options.set_reference_selection(v1::REFERENCE_SELECTION_SUCCESSFUL);
  options.set_objective(v1::OBJECTIVE_ANSWER);
  // What is ours is named as it is by default, which is off.
  const OptimizationSettings off;
  VisitOptions(off, [&options](const OptimizationOption& option, const auto& value) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(value)>>) {
      if (!option.is_ours) return;
      // Tests set every one.
      SetOption(option.name, NumberText(static_cast<double>(value)), &options).IgnoreError();
    } else if constexpr (std::is_enum_v<std::decay_t<decltype(value)>>) {
      if (option.is_ours) SetOption(option.name, TermOf(value).name, &options).IgnoreError();
    }
  });
  options.mutable_gate()->set_enabled(false);
  options.set_use_profile(false);
  return options;
}

EvalMethod Paper(const v1::ModelInfo& model) {
  EvalMethod method;
  method.optimization = PaperOptions(model);
  method.optimization.set_method(v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  method.optimization.set_kernel(v1::KERNEL_GAUSSIAN);
  method.optimization.set_steps(10);
  method.optimization.set_learning_rate(0.1);
  method.optimization.set_step_rule(v1::STEP_RULE_GRADIENT);
  method.optimization.set_core_experts(std::min(kPaperCoreExperts, model.experts()));
  method.optimization.set_application_rule(v1::APPLICATION_RULE_LAST_PROMPT_TOKEN);
  return method;
}

EvalMethod PublicCode(const v1::ModelInfo& model) {
  EvalMethod method;
  method.optimization = PaperOptions(model);
  method.optimization.set_method(v1::METHOD_KERNEL_REGRESSION);
  // Cosine similarity: the inner product of unit-length embeddings.
  method.optimization.set_kernel(v1::KERNEL_LINEAR);
  method.optimization.set_alpha(0);
  method.optimization.set_core_experts(0);
  method.optimization.set_application_rule(v1::APPLICATION_RULE_EVERY_NEW_TOKEN);
  return method;
}

// The options that say which neighbors. What is not set stays open: the collection's profile may set it, and the
// baselines must see the neighbors that the optimizing methods see. They are the client's own search, by the encoder:
// balance and neighbor_source are not for them.
v1::OptimizationOptions NeighborOptions(const v1::OptimizationOptions& common) {
  v1::OptimizationOptions options;
  if (common.has_k()) options.set_k(common.k());
  if (common.has_epsilon()) options.set_epsilon(common.epsilon());
  if (common.has_reference_selection()) options.set_reference_selection(common.reference_selection());
  if (common.has_kernel()) options.set_kernel(common.kernel());
  if (common.has_bandwidth()) options.set_bandwidth(common.bandwidth());
  if (common.has_filter()) *options.mutable_filter() = common.filter();
  if (common.has_use_profile()) options.set_use_profile(common.use_profile());
  if (common.has_preset()) options.set_preset(common.preset());
  return options;
}

// By a name without a label and without "+offset".
absl::StatusOr<EvalMethod> MakeBase(absl::string_view base, const MethodContext& context) {
  EvalMethod method;
  if (const Term<Method>* term = TermOfFlag<Method>(base); term != nullptr) {
    if (term->value != Method::kNone) method.optimization = context.common;
    method.optimization.set_method(static_cast<v1::Method>(term->number));
    if (term->value == Method::kOracle) method.optimization.clear_use_offset();  // None is fitted after it.
  } else if (base == "pairs") {
    method.optimization = context.common;
    method.optimization.set_method(v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
    method.optimization.set_objective(v1::OBJECTIVE_PAIRS);
  } else if (base == "profile") {
    method.optimization.set_use_profile(true);
  } else if (base == "paper") {
    method = Paper(context.server.model());
  } else if (base == "public-code") {
    method = PublicCode(context.server.model());
  } else if (base == "icl") {
    method.kind = MethodKind::kInContext;
    method.optimization = NeighborOptions(context.common);
    method.shots = context.shots;
  } else if (base == "knn") {
    method.kind = MethodKind::kNeighborVote;
    method.optimization = NeighborOptions(context.common);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("method \"", base, "\" is none of ", absl::StrJoin(MethodNames(), ", ")));
  }
  return method;
}

}  // namespace

const char* MethodKindName(MethodKind kind) {
  switch (kind) {
    case MethodKind::kScore:
      return "score";
    case MethodKind::kInContext:
      return "icl";
    case MethodKind::kNeighborVote:
      return "knn_vote";
  }
  return "";
}

std::vector<std::string> MethodNames() {
  std::vector<std::string> names = {"none"};
  for (const Term<Method>& term : TermsOf<Method>()) {
    if (term.value != Method::kNone) names.emplace_back(term.flag);
  }
  for (const char* name : {"pairs", "icl", "knn", "profile", "paper", "public-code", "offset"}) names.push_back(name);
  return names;
}

absl::StatusOr<EvalMethod> MakeMethod(absl::string_view name, const MethodContext& context) {
  const size_t equals = name.find('=');
  const absl::string_view label = name.substr(0, equals);
  absl::string_view base = equals == absl::string_view::npos ? name : name.substr(equals + 1);
  if (label.empty()) return absl::InvalidArgumentError(absl::StrCat("method \"", name, "\" has no label"));
  if (base == kOffset) base = "none+offset";
  const bool with_offset = absl::ConsumeSuffix(&base, kPlusOffset);
  C3PO_ASSIGN_OR_RETURN(EvalMethod method, MakeBase(base, context));
  if (with_offset) {
    if (method.kind != MethodKind::kScore || method.optimization.method() == v1::METHOD_ORACLE) {
      return absl::InvalidArgumentError(
          absl::StrCat("method \"", base, kPlusOffset, "\": no label offset is fitted after ", base));
    }
    method.optimization.set_use_offset(true);
  }
  method.label = std::string(label);
  return method;
}

absl::StatusOr<std::vector<EvalMethod>> MakeMethods(absl::Span<const std::string> names,
                                                    absl::Span<const std::string> settings,
                                                    const MethodContext& context) {
  std::vector<EvalMethod> methods;
  const auto find = [&](absl::string_view label) {
    return std::find_if(methods.begin(), methods.end(), [&](const EvalMethod& m) { return m.label == label; });
  };
  for (const std::string& name : names) {
    C3PO_ASSIGN_OR_RETURN(EvalMethod method, MakeMethod(name, context));
    if (find(method.label) != methods.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("method ", method.label, " is given twice; LABEL=", name, " gives one of them another label"));
    }
    methods.push_back(std::move(method));
  }
  for (const std::string& setting : settings) {
    const size_t dot = setting.find('.');
    const size_t equals = setting.find('=');
    if (dot == std::string::npos || equals == std::string::npos || dot > equals) {
      return absl::InvalidArgumentError(absl::StrCat("setting \"", setting, "\" is not LABEL.field=value"));
    }
    const auto method = find(absl::string_view(setting).substr(0, dot));
    if (method == methods.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("setting \"", setting, "\": no method has the label ", setting.substr(0, dot)));
    }
    const std::string field = setting.substr(dot + 1, equals - dot - 1);
    const absl::Status set = SetOption(field, absl::string_view(setting).substr(equals + 1), &method->optimization);
    if (!set.ok()) return absl::InvalidArgumentError(absl::StrCat("setting \"", setting, "\": ", set.message()));
  }
  return methods;
}

}  // namespace c3po
