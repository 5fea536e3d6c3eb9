#ifndef C3PO_SERVER_PIPELINE_OPTIMIZATION_SETTINGS_H_
#define C3PO_SERVER_PIPELINE_OPTIMIZATION_SETTINGS_H_

#include <vector>

#include "absl/status/status.h"
#include "index/types/optimization_options.h"
#include "server/types/model_runner.h"

namespace c3po {

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

// InvalidArgument "optimization.FIELD: what is wrong" for the first field out of its range in VisitOptions, then for
// what depends on the model or on several fields.
absl::Status ValidateSettings(const OptimizationSettings& settings, const ModelShape& shape);

// Whether the method of `settings` looks at neighbors.
bool NeedsNeighbors(const OptimizationSettings& settings);
// Whether a request with them needs its embedding: for neighbors, or for the gate, which compares their distance.
bool Retrieves(const OptimizationSettings& settings);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_OPTIMIZATION_SETTINGS_H_
