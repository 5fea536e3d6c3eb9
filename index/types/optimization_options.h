#ifndef C3PO_INDEX_TYPES_OPTIMIZATION_OPTIONS_H_
#define C3PO_INDEX_TYPES_OPTIMIZATION_OPTIONS_H_

// The options of an optimization, each with its default, and the one list of them (VisitOptions). From the list come
// the flags of c3po, the conversion of messages, ranges, a collection's effective settings, and what the paper's
// settings switch off. A new option is a field of options.proto, a field and a row here, and the code that reads it.

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "index/types/metadata_filter.h"
#include "index/types/optimization_terms.h"

namespace c3po {

inline constexpr int kNeighborsMax = 64;
inline constexpr int kExcludedMax = 1000;
inline constexpr int kStepsMax = 1000;
// A hundred times what any method was measured with. Steps of 1000 take mixing weights where a model computes no
// numbers.
inline constexpr double kLearningRateMax = 10;
inline constexpr double kTrustMax = 1000;
inline constexpr int kNeighborhoodsMax = 16;
// Distances are in [0, 2]: outside, a kernel tells nothing apart.
inline constexpr double kBandwidthMin = 1e-6, kBandwidthMax = 1e6;

// When an optimized pathway is not used (ours). A condition without a value is not checked.
struct GateOptions {
  bool enabled = true;
  std::optional<double> max_neighbor_distance;  // skip when the nearest neighbor is farther; [0, 2]
  // (0, 1]. Where max_neighbor_distance has no value: that of the collection's own references within which this share
  // of them have their nearest other one (ReferenceCatalog::OwnDistanceQuantile).
  double neighbor_distance_quantile = 0.95;
  std::optional<double>
      max_base_confidence;        // skip when the model's own next-token probability is at least this; (0, 1]
  double min_loss_reduction = 0;  // revert unless (first - last) / first loss exceeds this; < 1
  double min_validation_loss_reduction = 0;  // the same for the loss of held-out neighbors, where there are any
  // Revert when under the optimized pathway the model's probability of what it would answer is below this; (0, 1].
  std::optional<double> min_optimized_confidence;
};

// What gradient descent alone reads; server/pathway/pathway_optimizer.h has the formulas.
struct GradientDescentOptions {
  int steps = 10;              // [0, kStepsMax]; mode finding takes it as its iterations
  double learning_rate = 0.1;  // (0, kLearningRateMax]
  StepRule step_rule = StepRule::kAdam;
  double step_scale = 1;   // (0, 1]
  bool backtrack = false;  // steps that raise the loss are halved
  double trust = 0;        // [0, kTrustMax]: weight of the trust region, KL to the model alone at the neighbors
  int neighborhoods = 1;   // [1, kNeighborhoodsMax]: parts of the neighbors, each with a pathway; their mean is applied
  int patience = 0;        // [0, kStepsMax]: steps in a row that lower no loss before the end; 0: all are taken
};

// What one request does to its pathway, every field decided: the server's defaults with the request's options over
// them.
struct OptimizationSettings : GradientDescentOptions {
  Method method = Method::kNeighborhoodGradientDescent;
  int k = 3;                      // neighbors, [1, kNeighborsMax]
  std::optional<double> epsilon;  // instead of k: all within this distance, (0, 2], at most kNeighborsMax
  Kernel kernel = Kernel::kGaussian;
  std::optional<double> bandwidth;   // [kBandwidthMin, kBandwidthMax]; unset: the farthest neighbor's distance
  std::vector<int> critical_layers;  // ascending MoE layers; never empty once resolved
  int core_experts = 20;             // [0, experts]; 0: all
  ApplicationRule rule = ApplicationRule::kEveryNewToken;
  // The last so many tokens of a prompt that the pathway governs, the neighbors' and the request's, >= 1; of a shorter
  // prompt all. At most kPromptPositionsMax, and kGovernedRowsMax / neighbors (pipeline/optimization_settings.h).
  int prompt_positions = 1;
  std::string collection = "default";
  bool collection_may_be_missing = false;  // the server's default one: without it there are no neighbors
  GateOptions gate;
  ReferenceSelection references = ReferenceSelection::kSuccessful;
  NeighborSource neighbor_source = NeighborSource::kEmbedding;
  bool balance = false;  // neighbors from each answer in turn
  SurrogateLoss objective = SurrogateLoss::kAnswer;
  // [0, 1]. Unset: mode finding takes 0.5, kernel regression the best of a grid.
  std::optional<double> alpha;
  bool return_pathways = false;
  bool use_offset = false;       // the collection's label offset is added to the choices' scores
  bool use_prior = false;        // begin at the collection's prior; ROUTER_SHIFT, on the prior's layers
  int validation_neighbors = 0;  // held out beyond the k, [0, kNeighborsMax]; not with epsilon
  std::vector<std::string> exclude_reference_ids;  // at most kExcludedMax
  MetadataFilter filter;  // references that do not match are no neighbors; passes ValidateFilter
  // What the collection holds and this request could not use, in words: told in its report.
  std::vector<std::string> warnings;

  bool successful_only() const { return references == ReferenceSelection::kSuccessful; }
};

// The numbers that an option may have. An open end is no such number itself.
struct OptionRange {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_is_open = false, high_is_open = false;

  bool Holds(double value) const {  // What is not a number is in no range.
    return (low_is_open ? value > low : value >= low) && (high_is_open ? value < high : value <= high);
  }
};

struct OptimizationOption {
  const char* name;  // in options.proto; dotted for a field of GateOptions
  const char* flag;  // of c3po, with the one that says no where there is one: "--prior,!--no-prior"
  const char* help;  // of the flag
  // Of each value that is set. Where there is none, what else the server holds it against is in ValidateSettings.
  OptionRange range = {};
  // What the paper has not: its settings name the default, which switches it off.
  bool is_ours = false;
  bool is_of_one_request = false;  // never a default, and in no profile
};

template <typename Gate, typename Visit>
void VisitGateOptions(Gate& gate, Visit visit) {
  using Option = OptimizationOption;
  constexpr OptionRange kDistance = {0, 2};
  constexpr OptionRange kShareAboveZero = {0, 1, /*low_is_open=*/true}, kShareBelowOne = {0, 1, false, true};
  visit(Option{"gate.enabled", "--gate,!--no-gate", "Whether an optimized pathway may be set aside"}, gate.enabled);
  visit(Option{"gate.max_neighbor_distance", "--gate-max-distance",
               "Skip when the nearest neighbor is farther than this", kDistance},
        gate.max_neighbor_distance);
  visit(Option{"gate.neighbor_distance_quantile", "--gate-distance-quantile",
               "Without it: skip when it is farther than this share of the references are from each other",
               kShareAboveZero},
        gate.neighbor_distance_quantile);
  visit(Option{"gate.max_base_confidence", "--gate-max-confidence",
               "Skip when the model's own probability of its next token is at least this", kShareAboveZero},
        gate.max_base_confidence);
  visit(Option{"gate.min_loss_reduction", "--gate-min-loss-reduction",
               "Revert when the neighbors' loss fell by less than this fraction", kShareBelowOne},
        gate.min_loss_reduction);
  visit(Option{"gate.min_validation_loss_reduction", "--gate-min-validation-loss-reduction",
               "Revert when the held-out neighbors' loss fell by less than this fraction", kShareBelowOne},
        gate.min_validation_loss_reduction);
  visit(Option{"gate.min_optimized_confidence", "--gate-min-confidence",
               "Revert when the optimized model's probability of its own answer is below this", kShareAboveZero},
        gate.min_optimized_confidence);
}

// Calls visit(const OptimizationOption&, field) for every option of `s`, in the order of c3po's help. A field
// is an int, double, bool, string, enum of optimization_terms.h, optional double, vector of ints or strings, or the
// MetadataFilter.
// Long because every option is one call of it.
template <typename Settings, typename Visit>
void VisitOptions(Settings& s, Visit visit) {
  using Option = OptimizationOption;
  constexpr OptionRange kShare = {0, 1}, kShareAboveZero = {0, 1, /*low_is_open=*/true};
  constexpr OptionRange kDistanceAboveZero = {0, 2, /*low_is_open=*/true};
  visit(Option{"method", "--method",
               "How the pathway is found: none, mode finding, kernel regression, neighborhood gradient descent, the "
               "references' amortized shifts, the collection's prior; oracle: on the answer"},
        s.method);
  visit(Option{"kernel", "--kernel", "Weight of a neighbor by its distance"}, s.kernel);
  visit(Option{"application_rule", "--application", "Positions that the optimized pathway governs"}, s.rule);
  visit(Option{"reference_selection", "--references", "References that may be neighbors"}, s.references);
  visit(Option{"objective", "--objective",
               "The neighbors' loss: of the answer, of it against its choices, or of pairs of neighbors with different "
               "answers"},
        s.objective);
  visit(Option{"neighbor_source",
               "--neighbor-source",
               "By which vectors references are near: the encoder's, or the model's own hidden states",
               {},
               /*is_ours=*/true},
        s.neighbor_source);
  visit(Option{"step_rule", "--step-rule", "How a gradient becomes a step"}, s.step_rule);
  visit(Option{"collection", "--collection", "References to look for neighbors in"}, s.collection);
  visit(Option{"k", "--k", "Use the k nearest references", {1, kNeighborsMax}}, s.k);
  visit(Option{"epsilon", "--epsilon", "Use all references within this distance", kDistanceAboveZero}, s.epsilon);
  visit(Option{"bandwidth", "--bandwidth", "Kernel width, in embedding distance", {kBandwidthMin, kBandwidthMax}},
        s.bandwidth);
  visit(Option{"steps", "--steps", "Gradient steps", {0, kStepsMax}}, s.steps);
  visit(Option{"learning_rate", "--learning-rate", "Size of a step", {0, kLearningRateMax, /*low_is_open=*/true}},
        s.learning_rate);
  visit(Option{"critical_layers", "--critical-layers", "MoE layers whose weights move: 25,26 or 25-29"},
        s.critical_layers);
  visit(Option{"core_experts", "--core-experts", "Experts per layer whose weights move; 0: all"}, s.core_experts);
  visit(Option{"prompt_positions",
               "--prompt-positions",
               "Last tokens of each prompt that the pathway governs; the paper's 1",
               {},
               /*is_ours=*/true},
        s.prompt_positions);
  visit(Option{"alpha", "--alpha",
               "Weight of the query's own pathway in mode finding; in kernel regression instead of its grid", kShare},
        s.alpha);
  visit(Option{"balance",
               "--balance,!--no-balance",
               "Whether neighbors are taken from each answer in turn",
               {},
               /*is_ours=*/true},
        s.balance);
  visit(Option{"trust",
               "--trust",
               "Weight of staying near what the model alone says at the neighbors; 0: none",
               {0, kTrustMax},
               /*is_ours=*/true},
        s.trust);
  visit(Option{"neighborhoods",
               "--neighborhoods",
               "Parts of the neighbors that each find a pathway; their mean is applied",
               {1, kNeighborhoodsMax},
               /*is_ours=*/true},
        s.neighborhoods);
  visit(Option{"use_offset",
               "--offset,!--no-offset",
               "Whether the collection's label offset (refs tune --offset) is added to the choices' scores",
               {},
               /*is_ours=*/true},
        s.use_offset);
  visit(Option{"use_prior",
               "--prior,!--no-prior",
               "Whether gradient descent begins at the collection's prior (refs tune)",
               {},
               /*is_ours=*/true},
        s.use_prior);
  visit(Option{"validation_neighbors",
               "--validation-neighbors",
               "Further neighbors held out, to choose among the steps",
               {0, kNeighborsMax},
               /*is_ours=*/true},
        s.validation_neighbors);
  visit(Option{"step_scale", "--step-scale", "Part of the displacement found that is applied, in (0, 1]",
               kShareAboveZero, /*is_ours=*/true},
        s.step_scale);
  visit(Option{"backtrack",
               "--backtrack,!--no-backtrack",
               "Whether steps that raise the neighbors' loss are taken back and halved",
               {},
               /*is_ours=*/true},
        s.backtrack);
  visit(Option{"patience",
               "--patience",
               "End after so many steps in a row that lower no loss; 0: take all (default: 0)",
               {0, kStepsMax},
               /*is_ours=*/true},
        s.patience);
  visit(Option{"exclude_reference_ids",
               "--exclude",
               "Id of a reference that is no neighbor; may be given several times",
               {},
               /*is_ours=*/false,
               /*is_of_one_request=*/true},
        s.exclude_reference_ids);
  visit(Option{"filter",
               "--filter",
               "References that may be neighbors, by their metadata: {\"must\": [{\"key\": \"language\", "
               "\"equals\": \"en\"}]}",
               {},
               /*is_ours=*/true},
        s.filter);
  visit(Option{"return_pathways", "--return-pathways", "Ask for the pathways before and after (seen with --json)"},
        s.return_pathways);
  VisitGateOptions(s.gate, visit);
}

}  // namespace c3po

#endif  // C3PO_INDEX_TYPES_OPTIMIZATION_OPTIONS_H_
