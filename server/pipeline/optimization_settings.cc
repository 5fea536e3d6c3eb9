#include "server/pipeline/optimization_settings.h"

#include <algorithm>
#include <cmath>

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

absl::Status ValidateGate(const GateOptions& gate) {
  if (gate.max_neighbor_distance && !(*gate.max_neighbor_distance >= 0 && *gate.max_neighbor_distance <= 2)) {
    return FieldError("gate.max_neighbor_distance", "is ", NumberText(*gate.max_neighbor_distance),
                      ", must be in [0, 2]");
  }
  if (!(gate.neighbor_distance_quantile > 0 && gate.neighbor_distance_quantile <= 1)) {
    return FieldError("gate.neighbor_distance_quantile", "must be in (0, 1]");
  }
  if (gate.max_base_confidence && !(*gate.max_base_confidence > 0 && *gate.max_base_confidence <= 1)) {
    return FieldError("gate.max_base_confidence", "must be in (0, 1]");
  }
  if (!(gate.min_loss_reduction >= 0 && gate.min_loss_reduction < 1)) {
    return FieldError("gate.min_loss_reduction", "must be in [0, 1)");
  }
  if (!(gate.min_validation_loss_reduction >= 0 && gate.min_validation_loss_reduction < 1)) {
    return FieldError("gate.min_validation_loss_reduction", "must be in [0, 1)");
  }
  if (gate.min_optimized_confidence && !(*gate.min_optimized_confidence > 0 && *gate.min_optimized_confidence <= 1)) {
    return FieldError("gate.min_optimized_confidence", "must be in (0, 1]");
  }
  return absl::OkStatus();
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

absl::Status ValidatePromptPositions(const OptimizationSettings& settings) {
  int neighbors = settings.epsilon ? kNeighborsMax : settings.k + settings.validation_neighbors;
  if (settings.method == Method::kCollectionPrior || settings.method == Method::kOracle) neighbors = 1;
  const int most = PromptPositionsMax(std::max(1, neighbors));
  if (settings.prompt_positions >= 1 && settings.prompt_positions <= most) return absl::OkStatus();
  return FieldError("prompt_positions", "is ", settings.prompt_positions, ", must be in [1, ", most, "] for ",
                    neighbors, " neighbors");
}

// What gradient descent alone reads.
absl::Status ValidateDescent(const OptimizationSettings& settings) {
  if (settings.steps < 0 || settings.steps > kStepsMax) {
    return FieldError("steps", "is ", settings.steps, ", must be in [0, ", kStepsMax, "]");
  }
  if (!(settings.learning_rate > 0 && settings.learning_rate <= kLearningRateMax)) {
    return FieldError("learning_rate", "is ", NumberText(settings.learning_rate), ", must be in (0, ", kLearningRateMax,
                      "]");
  }
  if (settings.patience < 0 || settings.patience > kStepsMax) {
    return FieldError("patience", "is ", settings.patience, ", must be in [0, ", kStepsMax, "]");
  }
  if (!(settings.step_scale > 0 && settings.step_scale <= 1)) return FieldError("step_scale", "must be in (0, 1]");
  if (settings.validation_neighbors < 0 || settings.validation_neighbors > kNeighborsMax) {
    return FieldError("validation_neighbors", "is ", settings.validation_neighbors, ", must be in [0, ", kNeighborsMax,
                      "]");
  }
  if (settings.validation_neighbors > 0 && settings.epsilon) {
    return FieldError("validation_neighbors", "needs k; with epsilon no neighbor is left to hold out");
  }
  if (settings.use_prior && settings.rule != ApplicationRule::kRouterShift) {
    return FieldError("use_prior", "needs the application rule ROUTER_SHIFT");
  }
  return absl::OkStatus();
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
  settings.successful_only = false;
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
  settings.successful_only = true;
  settings.objective = SurrogateLoss::kAnswer;
  settings.gate.enabled = false;
  return settings;
}

int PromptPositionsMax(int prompts) { return std::min(kPromptPositionsMax, kGovernedRowsMax / prompts); }

absl::Status ValidateSettings(const OptimizationSettings& settings, const ModelShape& shape) {
  if (settings.epsilon) {
    if (!(*settings.epsilon > 0 && *settings.epsilon <= 2)) return FieldError("epsilon", "must be in (0, 2]");
  } else if (settings.k < 1 || settings.k > kNeighborsMax) {
    return FieldError("k", "is ", settings.k, ", must be in [1, ", kNeighborsMax, "]");
  }
  if (settings.bandwidth && !(*settings.bandwidth >= kBandwidthMin && *settings.bandwidth <= kBandwidthMax)) {
    return FieldError("bandwidth", "is ", NumberText(*settings.bandwidth), ", must be in [", NumberText(kBandwidthMin),
                      ", ", NumberText(kBandwidthMax), "]");
  }
  C3PO_RETURN_IF_ERROR(ValidateDescent(settings));
  C3PO_RETURN_IF_ERROR(ValidatePromptPositions(settings));
  C3PO_RETURN_IF_ERROR(ValidateLayers(settings, shape));
  if (settings.core_experts < 0 || settings.core_experts > shape.experts) {
    return FieldError("core_experts", "is ", settings.core_experts, ", must be in [0, ", shape.experts, "]");
  }
  if (settings.alpha && !(*settings.alpha >= 0 && *settings.alpha <= 1))
    return FieldError("alpha", "must be in [0, 1]");
  if (const absl::Status name = ValidateCollectionName(settings.collection); !name.ok())
    return absl::InvalidArgumentError(absl::StrCat("optimization.", name.message()));
  if (settings.exclude_reference_ids.size() > static_cast<size_t>(kExcludedMax)) {
    return FieldError("exclude_reference_ids", settings.exclude_reference_ids.size(), " are more than ", kExcludedMax);
  }
  return ValidateGate(settings.gate);
}

bool NeedsNeighbors(const OptimizationSettings& settings) {
  return settings.method != Method::kNone && settings.method != Method::kCollectionPrior &&
         settings.method != Method::kOracle;
}

bool Retrieves(const OptimizationSettings& settings) {
  return NeedsNeighbors(settings) || (settings.method == Method::kCollectionPrior && settings.gate.enabled);
}

}  // namespace c3po
