#ifndef C3PO_SERVER_PIPELINE_OPTIMIZATION_SETTINGS_H_
#define C3PO_SERVER_PIPELINE_OPTIMIZATION_SETTINGS_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/pathway/gate.h"
#include "server/pathway/kernels.h"
#include "server/pathway/pathway_optimizer.h"
#include "server/types/model_runner.h"

namespace c3po {

enum class Method {
  kNone,
  kModeFinding,
  kKernelRegression,
  kNeighborhoodGradientDescent,
  kAmortizedShift,   // kernel mean of the neighbors' own shifts
  kCollectionPrior,  // the collection's shift alone
  kOracle,           // gradient descent on the request's own answer
};

// What one request does to its pathway, every field decided: the server's defaults with the request's options over
// them.
struct OptimizationSettings {
  Method method = Method::kNeighborhoodGradientDescent;
  int k = 3;                      // neighbors, [1, kNeighborsMax]
  std::optional<double> epsilon;  // instead of k: all within this distance, (0, 2], at most kNeighborsMax
  Kernel kernel = Kernel::kGaussian;
  std::optional<double> bandwidth;   // [kBandwidthMin, kBandwidthMax]; unset: the farthest neighbor's distance
  int steps = 10;                    // [0, kStepsMax]
  double learning_rate = 0.1;        // (0, kLearningRateMax]
  std::vector<int> critical_layers;  // ascending MoE layers; never empty once resolved
  int core_experts = 20;             // [0, experts]; 0: all
  ApplicationRule rule = ApplicationRule::kEveryNewToken;
  // The last so many tokens of a prompt that the pathway governs, the neighbors' and the request's, >= 1; of a shorter
  // prompt all. At most kPromptPositionsMax, and kGovernedRowsMax / neighbors.
  int prompt_positions = 1;
  std::string collection = "default";
  bool collection_may_be_missing = false;  // the server's default one: without it there are no neighbors
  GateOptions gate;
  bool successful_only = true;
  SurrogateLoss objective = SurrogateLoss::kAnswer;
  StepRule step_rule = StepRule::kAdam;
  // [0, 1]. Unset: mode finding takes 0.5, kernel regression the best of a grid.
  std::optional<double> alpha;
  bool return_pathways = false;
  bool use_prior = false;        // begin at the collection's prior; ROUTER_SHIFT, on the prior's layers
  int validation_neighbors = 0;  // held out beyond the k, [0, kNeighborsMax]; not with epsilon
  double step_scale = 1;         // (0, 1]
  bool backtrack = false;        // steps that raise the loss are halved
  int patience = 0;              // [0, kStepsMax]: steps in a row that lower no loss before the end; 0: all are taken
  std::vector<std::string> exclude_reference_ids;  // at most kExcludedMax
  // What the collection holds and this request could not use, in words: told in its report.
  std::vector<std::string> warnings;
};

inline constexpr int kNeighborsMax = 64;
inline constexpr int kExcludedMax = 1000;
inline constexpr int kStepsMax = 1000;
// A hundred times what any method was measured with. Steps of 1000 take mixing weights where a model computes no
// numbers.
inline constexpr double kLearningRateMax = 10;
// Distances are in [0, 2]: outside, a kernel tells nothing apart.
inline constexpr double kBandwidthMin = 1e-6, kBandwidthMax = 1e6;
// A step runs so many positions of one prompt, and of all neighbors' together, at most: others wait for it, and their
// attention is kept until the way back.
inline constexpr int kPromptPositionsMax = 512;
inline constexpr int kGovernedRowsMax = 2048;
// The most prompt positions where so many prompts, at least one, run together.
int PromptPositionsMax(int prompts);

// The last `count` MoE layers of a model, or all of fewer, ascending.
std::vector<int> LastLayers(int count, const ModelShape& shape);

// What requests get over a collection that nobody calibrated: 8 Adam steps on a router shift over the last quarter of
// the layers (5 to 8 of them), all experts, on the choices' loss of the 12 nearest labeled references. It is used where
// the loss of the next 12, held out, falls by a twentieth.
OptimizationSettings DefaultSettings(const ModelShape& shape);

// The published settings, arXiv 2504.07964, whatever the defaults are: see Preset in options.proto.
OptimizationSettings PaperSettings(const ModelShape& shape);

// InvalidArgument "optimization.FIELD: what is wrong" for the first field out of range.
absl::Status ValidateSettings(const OptimizationSettings& settings, const ModelShape& shape);

// Whether the method of `settings` looks at neighbors.
bool NeedsNeighbors(const OptimizationSettings& settings);
// Whether a request with them needs its embedding: for neighbors, or for the gate, which compares their distance.
bool Retrieves(const OptimizationSettings& settings);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_OPTIMIZATION_SETTINGS_H_
