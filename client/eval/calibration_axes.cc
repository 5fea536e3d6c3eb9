// What a calibration tries, in the order in which it matters: whole settings first, so that the axes refine a sound
// point rather than climb from a poor one. Then, where the questions have labels, what decides whether descent goes
// beyond the labels' offset: a contrast over each neighbor's choices spends its first steps on the offset, which costs
// some of what the model knew (deploy/evaluation/RESULTS.md). Then rule and layers, then the rest, of which no value
// was shown to matter by itself.

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/eval/calibration.h"

namespace c3po {
namespace {

using Options = v1::OptimizationOptions;

void SetSuffix(uint32_t layers, uint32_t moe_layers, Options* options) {
  options->clear_critical_layers();
  for (uint32_t layer = moe_layers - std::min(layers, moe_layers); layer < moe_layers; ++layer) {
    options->add_critical_layers(layer);
  }
}

// A whole setting says what it is in every field that another one sets.
void SetOursOff(Options* patch) {
  patch->set_balance(false);
  patch->set_trust(0);
  patch->set_neighbor_source(v1::NEIGHBOR_SOURCE_EMBEDDING);
  patch->set_neighborhoods(1);
}

// The few labelled samples of a domain teach its answers: every labelled neighbor, contrast over its choices. Steps
// that raise the neighbors' loss are halved: it falls at every step then, and answers are as good
// (deploy/evaluation/RESULTS.md).
Options FewSamples(const CalibrationScope& scope) {
  Options patch;
  patch.set_method(v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  patch.set_k(12);
  patch.set_reference_selection(v1::REFERENCE_SELECTION_ALL);
  patch.set_objective(scope.has_choices ? v1::OBJECTIVE_CHOICES : v1::OBJECTIVE_ANSWER);
  patch.set_core_experts(0);
  patch.set_application_rule(v1::APPLICATION_RULE_ROUTER_SHIFT);
  patch.set_step_rule(v1::STEP_RULE_ADAM);
  patch.set_learning_rate(0.05);
  patch.set_steps(8);
  patch.set_backtrack(true);
  patch.set_validation_neighbors(0);
  SetOursOff(&patch);
  SetSuffix(8, scope.moe_layers, &patch);
  return patch;
}

// The same over pairs of neighbors with different answers, equally many of each, near what the model alone says there:
// no shift of the labels lowers this loss.
Options Pairs(const CalibrationScope& scope) {
  Options patch = FewSamples(scope);
  patch.set_objective(v1::OBJECTIVE_PAIRS);
  patch.set_balance(true);
  patch.set_trust(0.1);
  return patch;
}

Options Prior(const CalibrationScope& scope) {
  Options patch = FewSamples(scope);
  patch.set_method(v1::METHOD_COLLECTION_PRIOR);
  return patch;
}

CalibrationAxis WholeSettings(const CalibrationScope& scope) {
  CalibrationAxis axis{"setting", false, {}};
  if (scope.has_labels) {
    axis.candidates.push_back({"pairs", Pairs(scope)});
    // Asked in no time, and there only where it helped references that it was not fitted to.
    if (scope.has_prior) axis.candidates.push_back({"collection prior", Prior(scope)});
  }
  axis.candidates.push_back({"few samples", FewSamples(scope)});
  // What requests get without a profile: one that is worse would not be worth storing.
  Options defaults = scope.defaults;
  for (const char* own :
       {"collection", "use_profile", "return_pathways", "exclude_reference_ids", "min_index_generation"}) {
    defaults.GetReflection()->ClearField(&defaults, Options::descriptor()->FindFieldByName(own));
  }
  axis.candidates.push_back({"the server's defaults", defaults});
  if (scope.has_prior) {
    Options from_prior = FewSamples(scope);
    from_prior.set_use_prior(true);
    from_prior.set_learning_rate(0.02);
    if (!scope.has_labels) axis.candidates.push_back({"collection prior", Prior(scope)});
    axis.candidates.push_back({"few samples from the prior", from_prior});
  }
  Options brief = FewSamples(scope);
  brief.set_steps(2);
  axis.candidates.push_back({"few samples, two steps", brief});
  Options gentle = FewSamples(scope);
  gentle.set_learning_rate(0.02);
  axis.candidates.push_back({"few samples, small steps", gentle});
  Options weights = FewSamples(scope);
  weights.set_application_rule(v1::APPLICATION_RULE_EVERY_NEW_TOKEN);
  weights.set_learning_rate(0.2);
  axis.candidates.push_back({"few samples, weights", weights});
  Options paper;
  paper.set_method(v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  paper.set_k(3);
  paper.set_reference_selection(v1::REFERENCE_SELECTION_SUCCESSFUL);
  paper.set_objective(v1::OBJECTIVE_ANSWER);
  paper.set_core_experts(std::min<uint32_t>(20, scope.experts));
  paper.set_application_rule(v1::APPLICATION_RULE_LAST_PROMPT_TOKEN);
  paper.set_steps(10);
  paper.set_step_rule(v1::STEP_RULE_GRADIENT);
  paper.set_learning_rate(0.1);
  paper.set_backtrack(false);
  paper.set_validation_neighbors(0);
  SetOursOff(&paper);
  SetSuffix(5, scope.moe_layers, &paper);
  axis.candidates.push_back({"the paper's", paper});
  return axis;
}

CalibrationAxis Methods(const CalibrationScope& scope) {
  CalibrationAxis axis{"method", false, {}};
  const auto add = [&](const char* label, v1::Method method, bool shift) {
    Options patch;
    patch.set_method(method);
    if (shift) patch.set_application_rule(v1::APPLICATION_RULE_ROUTER_SHIFT);
    axis.candidates.push_back({label, patch});
  };
  add("kernel regression", v1::METHOD_KERNEL_REGRESSION, false);
  add("mode finding", v1::METHOD_MODE_FINDING, false);
  if (scope.has_amortized) add("amortized shifts", v1::METHOD_AMORTIZED_SHIFT, true);
  return axis;
}

CalibrationAxis Layers(const CalibrationScope& scope) {
  CalibrationAxis axis{"critical layers", false, {}};
  const std::set<uint32_t> counts = {std::min<uint32_t>(3, scope.moe_layers), std::min<uint32_t>(5, scope.moe_layers),
                                     std::min<uint32_t>(8, scope.moe_layers), (scope.moe_layers + 1) / 2,
                                     scope.moe_layers};
  for (const uint32_t count : counts) {
    Options patch;
    SetSuffix(count, scope.moe_layers, &patch);
    axis.candidates.push_back({absl::StrCat("last ", count), patch});
  }
  return axis;
}

// An axis of one number.
template <typename T, typename Set>
CalibrationAxis NumberAxis(const char* name, bool descent_only, const std::vector<T>& values, Set set) {
  CalibrationAxis axis{name, descent_only, {}};
  for (const T& value : values) {
    Options patch;
    set(value, &patch);
    axis.candidates.push_back({absl::StrCat(value), patch});
  }
  return axis;
}

CalibrationAxis StepRules() {
  CalibrationAxis axis{"step rule, learning rate", true, {}};
  const auto add = [&](const char* name, v1::StepRule rule, const std::vector<double>& rates) {
    for (const double rate : rates) {
      Options patch;
      patch.set_step_rule(rule);
      patch.set_learning_rate(rate);
      axis.candidates.push_back({absl::StrCat(name, " ", rate), patch});
    }
  };
  add("adam", v1::STEP_RULE_ADAM, {0.05, 0.1, 0.2, 0.4});
  add("normalized", v1::STEP_RULE_NORMALIZED, {0.5, 1.0, 2.0});
  add("gradient", v1::STEP_RULE_GRADIENT, {1.0});
  return axis;
}

CalibrationAxis Rules() {
  CalibrationAxis axis{"application rule", false, {}};
  for (const auto& [label, rule] : {std::pair("every new token", v1::APPLICATION_RULE_EVERY_NEW_TOKEN),
                                    std::pair("router shift", v1::APPLICATION_RULE_ROUTER_SHIFT),
                                    std::pair("last prompt token", v1::APPLICATION_RULE_LAST_PROMPT_TOKEN)}) {
    Options patch;
    patch.set_application_rule(rule);
    axis.candidates.push_back({label, patch});
  }
  return axis;
}

CalibrationAxis Selections() {
  CalibrationAxis axis{"references", false, {}};
  Options all, successful;
  all.set_reference_selection(v1::REFERENCE_SELECTION_ALL);
  successful.set_reference_selection(v1::REFERENCE_SELECTION_SUCCESSFUL);
  axis.candidates = {{"all", all}, {"successful", successful}};
  return axis;
}

CalibrationAxis Objectives(const CalibrationScope& scope) {
  CalibrationAxis axis{"objective", true, {}};
  Options pairs, choices, answer;
  pairs.set_objective(v1::OBJECTIVE_PAIRS);
  choices.set_objective(v1::OBJECTIVE_CHOICES);
  answer.set_objective(v1::OBJECTIVE_ANSWER);
  if (scope.has_labels) axis.candidates.push_back({"pairs", pairs});
  axis.candidates.push_back({"choices", choices});
  axis.candidates.push_back({"answer", answer});
  return axis;
}

CalibrationAxis Balance() {
  CalibrationAxis axis{"balance", false, {}};
  for (const bool balance : {true, false}) {
    Options patch;
    patch.set_balance(balance);
    axis.candidates.push_back({balance ? "each answer in turn" : "the nearest", patch});
  }
  return axis;
}

CalibrationAxis Sources() {
  CalibrationAxis axis{"neighbors by", false, {}};
  for (const auto& [label, source] : {std::pair("embedding", v1::NEIGHBOR_SOURCE_EMBEDDING),
                                      std::pair("critical layer", v1::NEIGHBOR_SOURCE_CRITICAL_LAYER),
                                      std::pair("last layer", v1::NEIGHBOR_SOURCE_LAST_LAYER)}) {
    Options patch;
    patch.set_neighbor_source(source);
    axis.candidates.push_back({label, patch});
  }
  return axis;
}

// Fields that hold harm down at some cost of lift.
CalibrationAxis Caution() {
  CalibrationAxis axis{"caution", true, {}};
  Options validation, half, plain;
  validation.set_validation_neighbors(4);
  half.set_step_scale(0.5);
  plain.set_backtrack(false);
  axis.candidates = {{"4 validation neighbors", validation},
                     {"half of the displacement", half},
                     {"steps that raise the loss kept", plain}};
  return axis;
}

bool Overlaps(const Options& patch, const Options& fixed) {
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  fixed.GetReflection()->ListFields(fixed, &fields);
  for (const auto* field : fields) {
    const bool set = field->is_repeated() ? patch.GetReflection()->FieldSize(patch, field) > 0
                                          : patch.GetReflection()->HasField(patch, field);
    if (set) return true;
  }
  // k and epsilon are one choice.
  return patch.has_k() && fixed.has_epsilon();
}

// Whole settings take the fixed fields; those that differed in nothing else are tried once.
void KeepFixed(const Options& fixed, CalibrationAxis* axis) {
  std::set<std::string> seen;
  std::vector<CalibrationCandidate> kept;
  for (CalibrationCandidate& candidate : axis->candidates) {
    ApplyPatch(fixed, &candidate.patch);
    if (seen.insert(candidate.patch.SerializeAsString()).second) kept.push_back(std::move(candidate));
  }
  axis->candidates = std::move(kept);
}

}  // namespace

std::vector<CalibrationAxis> CalibrationAxes(const CalibrationScope& scope) {
  const CalibrationAxis trusts = NumberAxis("trust", true, std::vector<double>{0, 0.1, 1},
                                            [](double trust, Options* patch) { patch->set_trust(trust); });
  const CalibrationAxis neighborhoods =
      NumberAxis("neighborhoods", true, std::vector<uint32_t>{1, 3},
                 [](uint32_t count, Options* patch) { patch->set_neighborhoods(count); });
  std::vector<CalibrationAxis> axes = {WholeSettings(scope)};
  if (scope.has_labels) axes.insert(axes.end(), {Objectives(scope), trusts, Balance(), Sources(), neighborhoods});
  axes.push_back(Rules());
  axes.push_back(Layers(scope));
  std::vector<uint32_t> ks = {3, 6, 12, 24};
  ks.erase(std::remove_if(ks.begin(), ks.end(), [&](uint32_t k) { return k >= scope.references; }), ks.end());
  axes.push_back(NumberAxis("k", false, ks, [](uint32_t k, Options* patch) { patch->set_k(k); }));
  axes.push_back(Selections());
  if (scope.has_choices && !scope.has_labels) axes.push_back(Objectives(scope));
  axes.push_back(StepRules());
  axes.push_back(NumberAxis("steps", true, std::vector<uint32_t>{1, 2, 3, 5, 10, 20},
                            [](uint32_t steps, Options* patch) { patch->set_steps(steps); }));
  std::vector<uint32_t> cores = {std::max<uint32_t>(1, scope.experts / 4)};
  if (scope.experts > 20) cores.push_back(20);
  cores.push_back(0);
  axes.push_back(
      NumberAxis("core experts", false, cores, [](uint32_t count, Options* patch) { patch->set_core_experts(count); }));
  axes.push_back(Caution());
  if (!scope.has_labels) {
    if (scope.has_choices) axes.push_back(trusts);
    axes.insert(axes.end(), {Sources(), neighborhoods});
  }
  // Last: where gradient descent does harm, a method that moves next to nothing would lead, and end the search early.
  axes.push_back(Methods(scope));
  // Where the user fixed a field, whole settings keep it and axes that would move it are left out.
  for (CalibrationAxis& axis : axes) {
    if (axis.name == "setting") {
      KeepFixed(scope.fixed, &axis);
      continue;
    }
    auto& candidates = axis.candidates;
    candidates.erase(std::remove_if(candidates.begin(), candidates.end(),
                                    [&](const CalibrationCandidate& c) { return Overlaps(c.patch, scope.fixed); }),
                     candidates.end());
  }
  return axes;
}

}  // namespace c3po
