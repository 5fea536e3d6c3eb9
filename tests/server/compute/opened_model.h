#ifndef C3PO_TESTS_SERVER_COMPUTE_OPENED_MODEL_H_
#define C3PO_TESTS_SERVER_COMPUTE_OPENED_MODEL_H_

#include <memory>
#include <string>
#include <utility>

#include "server/compute/model_weights.h"
#include "server/model/config/tensor_plan.h"

namespace c3po {

// A golden model's folder, and its weights as any backend packs them.
struct OpenedModel {
  explicit OpenedModel(const std::string& name)
      : checkpoint(*Checkpoint::Open(std::string(C3PO_TESTDATA_DIR) + "/model/" + name)),
        config(*ReadConfig(*checkpoint)),
        weights(*ViewWeights(checkpoint, config)) {}

  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  ModelWeights weights;
};

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_COMPUTE_OPENED_MODEL_H_
