#ifndef C3PO_TESTS_SERVER_COMPUTE_OPENED_MODEL_H_
#define C3PO_TESTS_SERVER_COMPUTE_OPENED_MODEL_H_

#include <memory>
#include <string>
#include <utility>

#include "server/compute/model_weights.h"
#include "server/model/config/tensor_plan.h"

namespace c3po {

// A model's folder, and its weights as any backend packs them.
struct OpenedFolder {
  explicit OpenedFolder(const std::string& folder)
      : checkpoint(*OpenCheckpoint(folder)),
        config(*ReadConfig(*checkpoint)),
        weights(*ViewWeights(checkpoint, config)) {}

  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  ModelWeights weights;
};

// A golden model's.
struct OpenedModel : OpenedFolder {
  explicit OpenedModel(const std::string& name) : OpenedFolder(std::string(C3PO_TESTDATA_DIR) + "/model/" + name) {}
};

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_COMPUTE_OPENED_MODEL_H_
