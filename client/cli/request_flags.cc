#include "client/cli/request_flags.h"

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "client/eval/option_setting.h"

namespace c3po {
namespace {

constexpr char kOptimization[] = "C3PO";
constexpr char kGate[] = "C3PO gate";
constexpr char kSampling[] = "Sampling";

// A flag whose value is set in the message as soon as it is read.
template <typename T, typename Set>
CLI::Option* AddField(CLI::App& command, const char* group, const char* flag, const char* help, Set set) {
  return command
      .add_option_function<T>(
          flag, [set](const T& value) { set(value); }, help)
      ->group(group);
}

template <typename Enum, typename Set>
CLI::Option* AddEnum(CLI::App& command, const char* flag, const char* help, const std::map<std::string, Enum>& names,
                     Set set) {
  std::vector<std::string> allowed;
  for (const auto& [name, value] : names) allowed.push_back(name);
  return command
      .add_option_function<std::string>(
          flag, [names, set](const std::string& name) { set(names.at(name)); }, help)
      ->check(CLI::IsMember(allowed))
      ->group(kOptimization);
}

std::vector<uint32_t> ParseLayers(const std::string& text) {
  absl::StatusOr<std::vector<uint32_t>> layers = ParseLayerList(text);
  if (!layers.ok()) throw CLI::ValidationError("--critical-layers", std::string(layers.status().message()));
  return *std::move(layers);
}

std::pair<uint32_t, float> ParseLogitBias(const std::string& text) {
  const size_t equals = text.find('=');
  uint32_t token_id = 0;
  float bias = 0;
  if (equals == std::string::npos || !absl::SimpleAtoi(text.substr(0, equals), &token_id) ||
      !absl::SimpleAtof(text.substr(equals + 1), &bias)) {
    throw CLI::ValidationError("--logit-bias", text + " is not TOKEN_ID=BIAS");
  }
  return {token_id, bias};
}

void AddGateFlags(CLI::App& command, v1::OptimizationOptions* options) {
  command
      .add_flag_function(
          "--gate,!--no-gate", [=](int64_t count) { options->mutable_gate()->set_enabled(count > 0); },
          "Whether an optimized pathway may be set aside")
      ->group(kGate);
  AddField<double>(command, kGate, "--gate-max-distance", "Skip when the nearest neighbor is farther than this",
                   [=](double value) { options->mutable_gate()->set_max_neighbor_distance(value); });
  AddField<double>(command, kGate, "--gate-distance-quantile",
                   "Without it: skip when it is farther than this share of the references are from each other",
                   [=](double value) { options->mutable_gate()->set_neighbor_distance_quantile(value); });
  AddField<double>(command, kGate, "--gate-max-confidence",
                   "Skip when the model's own probability of its next token is at least this",
                   [=](double value) { options->mutable_gate()->set_max_base_confidence(value); });
  AddField<double>(command, kGate, "--gate-min-loss-reduction",
                   "Revert when the neighbors' loss fell by less than this fraction",
                   [=](double value) { options->mutable_gate()->set_min_loss_reduction(value); });
  AddField<double>(command, kGate, "--gate-min-validation-loss-reduction",
                   "Revert when the held-out neighbors' loss fell by less than this fraction",
                   [=](double value) { options->mutable_gate()->set_min_validation_loss_reduction(value); });
  AddField<double>(command, kGate, "--gate-min-confidence",
                   "Revert when the optimized model's probability of its own answer is below this",
                   [=](double value) { options->mutable_gate()->set_min_optimized_confidence(value); });
}

// What a collection holds beside its references, and which of them count.
void AddCollectionFlags(CLI::App& command, v1::OptimizationOptions* options) {
  command
      .add_flag_function(
          "--profile,!--no-profile", [=](int64_t count) { options->set_use_profile(count > 0); },
          "Whether the collection's profile fills what is not set (default: yes)")
      ->group(kOptimization);
  command
      .add_flag_function(
          "--prior,!--no-prior", [=](int64_t count) { options->set_use_prior(count > 0); },
          "Whether gradient descent begins at the collection's prior (refs tune)")
      ->group(kOptimization);
  AddField<uint32_t>(command, kOptimization, "--validation-neighbors",
                     "Further neighbors held out, to choose among the steps",
                     [=](uint32_t value) { options->set_validation_neighbors(value); });
  AddField<double>(command, kOptimization, "--step-scale", "Part of the displacement found that is applied, in (0, 1]",
                   [=](double value) { options->set_step_scale(value); });
  command
      .add_flag_function(
          "--backtrack,!--no-backtrack", [=](int64_t count) { options->set_backtrack(count > 0); },
          "Whether steps that raise the neighbors' loss are taken back and halved")
      ->group(kOptimization);
  AddField<uint32_t>(command, kOptimization, "--patience",
                     "End after so many steps in a row that lower no loss; 0: take all (default: 0)",
                     [=](uint32_t value) { options->set_patience(value); });
  AddField<std::vector<std::string>>(command, kOptimization, "--exclude",
                                     "Id of a reference that is no neighbor; may be given several times",
                                     [=](const std::vector<std::string>& ids) {
                                       for (const std::string& id : ids) options->add_exclude_reference_ids(id);
                                     })
      ->allow_extra_args(false);
}

void AddEnumFlags(CLI::App& command, v1::OptimizationOptions* options) {
  AddEnum<v1::Method>(command, "--method",
                      "How the pathway is found: none, mode finding, kernel regression, neighborhood gradient "
                      "descent, the references' amortized shifts, the collection's prior; oracle: on the answer",
                      {{"none", v1::METHOD_NONE},
                       {"mode", v1::METHOD_MODE_FINDING},
                       {"kernel", v1::METHOD_KERNEL_REGRESSION},
                       {"ngd", v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT},
                       {"amortized", v1::METHOD_AMORTIZED_SHIFT},
                       {"prior", v1::METHOD_COLLECTION_PRIOR},
                       {"oracle", v1::METHOD_ORACLE}},
                      [=](v1::Method value) { options->set_method(value); });
  AddEnum<v1::Preset>(command, "--preset", "Published settings for what is not set, instead of profile and defaults",
                      {{"paper", v1::PRESET_PAPER}}, [=](v1::Preset value) { options->set_preset(value); });
  AddEnum<v1::Kernel>(command, "--kernel", "Weight of a neighbor by its distance",
                      {{"gaussian", v1::KERNEL_GAUSSIAN},
                       {"matern", v1::KERNEL_MATERN},
                       {"linear", v1::KERNEL_LINEAR},
                       {"polynomial", v1::KERNEL_POLYNOMIAL}},
                      [=](v1::Kernel value) { options->set_kernel(value); });
  AddEnum<v1::ApplicationRule>(command, "--application", "Positions that the optimized pathway governs",
                               {{"last", v1::APPLICATION_RULE_LAST_PROMPT_TOKEN},
                                {"every", v1::APPLICATION_RULE_EVERY_NEW_TOKEN},
                                {"shift", v1::APPLICATION_RULE_ROUTER_SHIFT}},
                               [=](v1::ApplicationRule value) { options->set_application_rule(value); });
  AddEnum<v1::ReferenceSelection>(
      command, "--references", "References that may be neighbors",
      {{"successful", v1::REFERENCE_SELECTION_SUCCESSFUL}, {"all", v1::REFERENCE_SELECTION_ALL}},
      [=](v1::ReferenceSelection value) { options->set_reference_selection(value); });
  AddEnum<v1::Objective>(command, "--objective", "The neighbors' loss: of the answer, or of it against its choices",
                         {{"answer", v1::OBJECTIVE_ANSWER}, {"choices", v1::OBJECTIVE_CHOICES}},
                         [=](v1::Objective value) { options->set_objective(value); });
  AddEnum<v1::StepRule>(
      command, "--step-rule", "How a gradient becomes a step",
      {{"gradient", v1::STEP_RULE_GRADIENT}, {"normalized", v1::STEP_RULE_NORMALIZED}, {"adam", v1::STEP_RULE_ADAM}},
      [=](v1::StepRule value) { options->set_step_rule(value); });
}

}  // namespace

void AddOptimizationFlags(CLI::App& command, v1::OptimizationOptions* options) {
  AddEnumFlags(command, options);
  AddField<std::string>(command, kOptimization, "--collection", "References to look for neighbors in",
                        [=](const std::string& value) { options->set_collection(value); });
  CLI::Option* k = AddField<uint32_t>(command, kOptimization, "--k", "Use the k nearest references",
                                      [=](uint32_t value) { options->set_k(value); });
  AddField<double>(command, kOptimization, "--epsilon", "Use all references within this distance", [=](double value) {
    options->set_epsilon(value);
  })->excludes(k);
  AddField<double>(command, kOptimization, "--bandwidth", "Kernel width, in embedding distance",
                   [=](double value) { options->set_bandwidth(value); });
  AddField<uint32_t>(command, kOptimization, "--steps", "Gradient steps",
                     [=](uint32_t value) { options->set_steps(value); });
  AddField<double>(command, kOptimization, "--learning-rate", "Size of a step",
                   [=](double value) { options->set_learning_rate(value); });
  AddField<std::string>(command, kOptimization, "--critical-layers", "MoE layers whose weights move: 25,26 or 25-29",
                        [=](const std::string& value) {
                          options->clear_critical_layers();
                          for (const uint32_t layer : ParseLayers(value)) options->add_critical_layers(layer);
                        });
  AddField<uint32_t>(command, kOptimization, "--core-experts", "Experts per layer whose weights move; 0: all",
                     [=](uint32_t value) { options->set_core_experts(value); });
  AddField<uint32_t>(command, kOptimization, "--prompt-positions",
                     "Last tokens of each prompt that the pathway governs; the paper's 1",
                     [=](uint32_t value) { options->set_prompt_positions(value); });
  AddField<double>(command, kOptimization, "--alpha",
                   "Weight of the query's own pathway in mode finding; in kernel regression instead of its grid",
                   [=](double value) { options->set_alpha(value); });
  AddCollectionFlags(command, options);
  command
      .add_flag_function(
          "--return-pathways", [=](int64_t count) { options->set_return_pathways(count > 0); },
          "Ask for the pathways before and after (seen with --json)")
      ->group(kOptimization);
  AddGateFlags(command, options);
}

void AddSamplingFlags(CLI::App& command, v1::SamplingOptions* options) {
  AddField<double>(command, kSampling, "--temperature", "0 is greedy",
                   [=](double value) { options->set_temperature(value); });
  AddField<uint32_t>(command, kSampling, "--top-k", "Sample among this many tokens; 0: all",
                     [=](uint32_t value) { options->set_top_k(value); });
  AddField<double>(command, kSampling, "--top-p", "Sample among the likeliest tokens that sum to this",
                   [=](double value) { options->set_top_p(value); });
  AddField<double>(command, kSampling, "--min-p", "Sample among tokens at least this likely against the likeliest",
                   [=](double value) { options->set_min_p(value); });
  AddField<double>(command, kSampling, "--repetition-penalty", "1 is none",
                   [=](double value) { options->set_repetition_penalty(value); });
  AddField<uint64_t>(command, kSampling, "--seed", "Makes sampling repeatable",
                     [=](uint64_t value) { options->set_seed(value); });
  AddField<uint32_t>(command, kSampling, "--max-tokens", "End after this many tokens",
                     [=](uint32_t value) { options->set_max_tokens(value); });
  AddField<std::vector<std::string>>(command, kSampling, "--stop", "End before this text; may be given several times",
                                     [=](const std::vector<std::string>& values) {
                                       for (const std::string& value : values) options->add_stop(value);
                                     })
      ->allow_extra_args(false);
  AddField<std::vector<std::string>>(command, kSampling, "--logit-bias",
                                     "TOKEN_ID=BIAS, -100 to 100, added to its logit; may be given several times",
                                     [=](const std::vector<std::string>& values) {
                                       for (const std::string& value : values) {
                                         const auto [token_id, bias] = ParseLogitBias(value);
                                         (*options->mutable_logit_bias())[token_id] = bias;
                                       }
                                     })
      ->allow_extra_args(false);
  AddField<uint32_t>(command, kSampling, "--logprobs", "Log-probabilities of this many likeliest tokens (with --json)",
                     [=](uint32_t value) { options->set_logprobs(value); });
  command
      .add_flag_function(
          "--ignore-eos", [=](int64_t count) { options->set_ignore_eos(count > 0); },
          "Go on after the end-of-sequence token")
      ->group(kSampling);
}

}  // namespace c3po
