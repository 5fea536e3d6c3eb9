#ifndef C3PO_SERVER_MODEL_OBJECTIVE_MEMORY_H_
#define C3PO_SERVER_MODEL_OBJECTIVE_MEMORY_H_

#include <cstdint>

#include "server/compute/backend.h"
#include "server/model/config/model_config.h"
#include "server/types/neighborhood_objective.h"

namespace c3po {

// Rows of the pass that prepares several neighbors; one that has more by itself is prepared alone. As many as a forward
// pass has prompt tokens by default.
inline constexpr int64_t kPreparationRowsMax = 512;

// An estimate from above of the bytes that an objective over spec.cases takes at most at once, from the first neighbor
// that is prepared to its last evaluation with a gradient: the neighbors' states, which a cache may hold anyway, what
// NeighborRows keeps of the rows, and one pass up and down with its tapes. spec.states are not looked at. It is what
// matrices of the backend's type of activations hold, and what `info` says of its products besides.
// The spec's cases are as CheckCase wants them; critical_layers are of the model.
int64_t ObjectiveMemory(const ModelConfig& config, const ObjectiveSpec& spec, int prompt_positions,
                        const BackendInfo& info);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_OBJECTIVE_MEMORY_H_
