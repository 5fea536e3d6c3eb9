#ifndef C3PO_SERVER_COMPUTE_MODEL_WEIGHTS_H_
#define C3PO_SERVER_COMPUTE_MODEL_WEIGHTS_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "server/model/config/model_config.h"
#include "server/model/config/weight_use.h"
#include "server/weights/checkpoint.h"
#include "server/weights/host_matrix.h"

namespace c3po {

struct StoredWeight {
  WeightUse use;
  HostMatrix matrix;
  std::string name = {};  // of the tensor that it is or lies in; empty: it has none
};

// A model's weights on the host, as they are stored. Any backend packs its own from them. A value; copies share the
// bytes.
struct ModelWeights {
  std::vector<StoredWeight> outside;              // of the layers: embedding, final norm, LM head unless tied
  std::vector<std::vector<StoredWeight>> layers;  // by decoder layer
  std::shared_ptr<const void> source;             // keeps the bytes alive; null: somebody else does
};

// Views of what `checkpoint`, which they keep, holds. Errors are those of CheckTensors: nothing that config.json sizes
// is allocated before the checkpoint was found to have as much to fill it with.
absl::StatusOr<ModelWeights> ViewWeights(std::shared_ptr<const Checkpoint> checkpoint, const ModelConfig& config);

// Called with each layer that is packed; may be null.
using LoadProgress = std::function<void(int done, int total)>;

// Calls `pack` with each weight once, and lets its pages go: what was copied need not stay resident beside its copy.
// Layers come in the order in which the checkpoint's digest goes through them, so that whoever reads for the one has
// read for the other. Throws std::invalid_argument, before the first call, where the weights are not those of `config`:
// a part is missing, too much, or out of its matrix; and at a weight with a ScaleProblem.
void PackEach(const ModelConfig& config, const ModelWeights& weights, const LoadProgress& progress,
              absl::FunctionRef<void(const StoredWeight&)> pack);

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_MODEL_WEIGHTS_H_
