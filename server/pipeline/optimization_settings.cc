#include "server/pipeline/optimization_settings.h"

#include <algorithm>
#include <optional>
#include <string>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "index/base/number_text.h"
#include "index/base/status_macros.h"
#include "index/types/reference_validation.h"

namespace c3po {
namespace {

constexpr int kPaperCriticalLayers = 5;
constexpr int kPaperCoreExperts = 20;

template <typename... Parts>
absl::Status FieldError(absl::string_view field, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("optimization.", field, ": ", parts...));
}

std::string RangeText(const OptionRange& range) {
  return absl::StrCat(range.low_is_open ? "(" : "[", NumberText(range.low), ", ", NumberText(range.high),
                      range.high_is_open ? ")" : "]");
}

std::string ValueText(int value) { return absl::StrCat(value); }
std::string ValueText(double value) { return NumberText(value); }

template <typename Number>
absl::Status CheckRange(const OptimizationOption& option, Number value) {
  if (option.range.Holds(value)) return absl::OkStatus();
  return FieldError(option.name, "is ", ValueText(value), ", must be in ", RangeText(option.range));
}

absl::Status CheckRanges(const OptimizationSettings& settings) {
  absl::Status status;
  VisitOptions(settings, [&](const OptimizationOption& option, const auto& value) {
    using Value = std::decay_t<decltype(value)>;
    if (!status.ok() || (settings.epsilon && option.name == absl::string_view("k"))) return;  // k is not read then.
    if constexpr (std::is_same_v<Value, std::optional<double>>) {
      if (value) status = CheckRange(option, *value);
    } else if constexpr (std::is_same_v<Value, int> || std::is_same_v<Value, double>) {
      status = CheckRange(option, value);
    }
  });
  return status;
}

absl::Status ValidateLayers(const OptimizationSettings& settings, const ModelShape& shape) {
  for (size_t i = 0; i < settings.critical_layers.size(); ++i) {
    const int layer = settings.critical_layers[i];
    if (layer < 0 || layer >= shape.moe_layers) {
      return FieldError(absl::StrCat("critical_layers[", i, "]"), "layer ", layer,
                        " does not exist; the model has MoE layers 0 to ", shape.moe_layers - 1);
    }
    if (i > 0 && layer <= settings.critical_layers[i - 1]) {
      return FieldError(absl::StrCat("critical_layers[", i, "]"), "layer ", layer, " is given twice");
    }
  }
  if (settings.critical_layers.empty()) return FieldError("critical_layers", "must name at least one layer");
  return absl::OkStatus();
}

absl::Status ValidateNeighborhoods(const OptimizationSettings& settings) {
  const int parts = settings.neighborhoods;
  if (parts == 1) return absl::OkStatus();
  if (settings.method != Method::kNeighborhoodGradientDescent) {
    return FieldError("neighborhoods", parts, " parts need the method neighborhood gradient descent");
  }
  if (settings.epsilon || settings.k >= parts) return absl::OkStatus();
  return FieldError("neighborhoods", parts, " parts need a neighbor each, and k is ", settings.k);
}

absl::Status ValidatePromptPositions(const OptimizationSettings& settings) {
  // Several parts look at the held-out neighbors side by side.
  int neighbors =
      settings.epsilon ? kNeighborsMax : settings.k + settings.neighborhoods * settings.validation_neighbors;
  if (settings.method == Method::kCollectionPrior || settings.method == Method::kOracle) neighbors = 1;
  const int most = PromptPositionsMax(std::max(1, neighbors));
  if (settings.prompt_positions >= 1 && settings.prompt_positions <= most) return absl::OkStatus();
  return FieldError("prompt_positions", "is ", settings.prompt_positions, ", must be in [1, ", most, "] for ",
                    neighbors, " neighbors");
}

}  // namespace

std::vector<int> LastLayers(int count, const ModelShape& shape) {
  std::vector<int> layers;
  for (int l = std::max(0, shape.moe_layers - count); l < shape.moe_layers; ++l) layers.push_back(l);
  return layers;
}

// Few labeled samples teach a model how a domain answers; what was measured to do the least harm before anybody
// calibrated is in deploy/evaluation/RESULTS.md, "Harm by default".
OptimizationSettings DefaultSettings(const ModelShape& shape) {
  OptimizationSettings settings;
  settings.k = 12;
  settings.references = ReferenceSelection::kAll;
  settings.objective = SurrogateLoss::kChoices;
  settings.rule = ApplicationRule::kRouterShift;
  settings.core_experts = 0;
  settings.step_rule = StepRule::kAdam;
  settings.learning_rate = 0.05;
  settings.steps = 8;
  settings.backtrack = true;
  settings.validation_neighbors = 12;
  settings.gate.min_validation_loss_reduction = 0.05;
  settings.critical_layers = LastLayers(std::clamp((shape.moe_layers + 3) / 4, kPaperCriticalLayers, 8), shape);
  return settings;
}

OptimizationSettings PaperSettings(const ModelShape& shape) {
  OptimizationSettings settings;
  settings.method = Method::kNeighborhoodGradientDescent;
  settings.k = 3;
  settings.kernel = Kernel::kGaussian;
  settings.steps = 10;
  settings.learning_rate = 0.1;
  settings.step_rule = StepRule::kGradient;
  settings.critical_layers = LastLayers(kPaperCriticalLayers, shape);
  settings.core_experts = std::min(kPaperCoreExperts, shape.experts);
  settings.rule = ApplicationRule::kLastPromptToken;
  settings.references = ReferenceSelection::kSuccessful;
  settings.objective = SurrogateLoss::kAnswer;
  settings.gate.enabled = false;
  return settings;
}

int PromptPositionsMax(int prompts) { return std::min(kPromptPositionsMax, kGovernedRowsMax / prompts); }

absl::Status ValidateSettings(const OptimizationSettings& settings, const ModelShape& shape) {
  C3PO_RETURN_IF_ERROR(CheckRanges(settings));
  if (settings.validation_neighbors > 0 && settings.epsilon) {
    return FieldError("validation_neighbors", "needs k; with epsilon no neighbor is left to hold out");
  }
  if (settings.balance && settings.epsilon) {
    return FieldError("balance", "needs k; within epsilon an answer has as many neighbors as lie there");
  }
  C3PO_RETURN_IF_ERROR(ValidateNeighborhoods(settings));
  if (settings.use_prior && settings.rule != ApplicationRule::kRouterShift) {
    return FieldError("use_prior", "needs the application rule ROUTER_SHIFT");
  }
  C3PO_RETURN_IF_ERROR(ValidatePromptPositions(settings));
  C3PO_RETURN_IF_ERROR(ValidateLayers(settings, shape));
  if (settings.core_experts < 0 || settings.core_experts > shape.experts) {
    return FieldError("core_experts", "is ", settings.core_experts, ", must be in [0, ", shape.experts, "]");
  }
  if (const absl::Status name = ValidateCollectionName(settings.collection); !name.ok())
    return absl::InvalidArgumentError(absl::StrCat("optimization.", name.message()));
  if (settings.exclude_reference_ids.size() > static_cast<size_t>(kExcludedMax)) {
    return FieldError("exclude_reference_ids", settings.exclude_reference_ids.size(), " are more than ", kExcludedMax);
  }
  C3PO_RETURN_IF_ERROR(ValidateFilter("optimization.filter", settings.filter));
  return absl::OkStatus();
}

bool NeedsNeighbors(const OptimizationSettings& settings) {
  return settings.method != Method::kNone && settings.method != Method::kCollectionPrior &&
         settings.method != Method::kOracle;
}

bool Retrieves(const OptimizationSettings& settings) {
  return NeedsNeighbors(settings) || (settings.method == Method::kCollectionPrior && settings.gate.enabled);
}

}  // namespace c3po
