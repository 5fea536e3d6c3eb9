#ifndef C3PO_SERVER_PIPELINE_PRIOR_TUNER_H_
#define C3PO_SERVER_PIPELINE_PRIOR_TUNER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/pathway/adam.h"
#include "server/pipeline/case_preparations.h"
#include "server/pipeline/learned_shifts.h"
#include "server/types/model_runner.h"
#include "server/types/sequence_request.h"

namespace c3po {

struct PriorTunerOptions {
  std::vector<int> critical_layers;  // ascending; whose routers are shifted
  int prompt_positions = 1;          // at the last so many tokens of a prompt and each token of the answer, >= 1
  SurrogateLoss loss = SurrogateLoss::kChoices;
  int epochs = 8;               // at most, [1, 1000]
  int batch_size = 16;          // references per step, [1, 64]
  double learning_rate = 0.05;  // of Adam, > 0
  double weight_decay = 0;      // >= 0; each step shrinks the shift by rate * decay
  int patience = 2;             // epochs without a better validation loss before it stops, >= 1
  uint64_t seed = 0;            // of the order of the batches
};

// Learns one shift s of the router's logits over a set of labeled references (ours, "collection prior"):
//   s = argmin_s sum_i l(f(x_i, router logits + s), y_i)
// by Adam on minibatches, the shift with the least loss on the validation references kept, zero included. A task of the
// engine: a unit prepares a minibatch's references, or a part of them; or makes the objective of a minibatch, which
// costs no more than a layer of its rows; or is the evaluation of that minibatch. Used by the engine thread alone.
class PriorTuner final : public OptimizationTask {
 public:
  struct Epoch {
    int number = 0;                             // 0: before the first
    double training_loss = 0;                   // mean over the epoch's minibatches; 0 in epoch 0
    double validation_loss = 0;                 // mean
    std::optional<double> validation_accuracy;  // unset where the references have no choices
    double seconds = 0;
  };
  // `model` outlives it. Both lists hold at least one case. `on_epoch` comes from the engine thread.
  PriorTuner(ModelRunner* model, std::vector<NeighborCase> training, std::vector<NeighborCase> validation,
             PriorTunerOptions options, std::function<void(const Epoch&)> on_epoch);

  absl::StatusOr<bool> Step(int64_t row_layers) override;
  std::optional<Evaluation> Ask() const override;
  absl::StatusOr<bool> Tell(const LossAndGradient& result, double seconds) override;
  int64_t memory_bytes() const override { return memory_bytes_; }
  std::shared_ptr<const RoutingOverride> routing() const override { return nullptr; }

  // What the largest minibatch takes that the order may give: as though the cases that take the most by themselves were
  // one.
  static int64_t MinibatchBytes(const ModelRunner& model, const std::vector<NeighborCase>& training,
                                const std::vector<NeighborCase>& validation, const PriorTunerOptions& options);

  // Once finished; nothing when no epoch lowered the validation loss. model_digest is set.
  std::optional<CollectionPrior> result() const;

 private:
  // Where a pass over cases stands.
  struct Pass {
    bool training = false;
    size_t next = 0;  // first case of the minibatch
    double loss_sum = 0;
    int64_t correct = 0;
    bool counted = true;
  };

  absl::Status BeginBatch();
  absl::StatusOr<bool> EndPass();
  void BeginPass(bool training);
  void Move(const Pathway& gradient);
  const std::vector<NeighborCase>& cases() const { return pass_.training ? training_ : validation_; }
  size_t BatchEnd() const;
  RoutingOverride Routing() const;

  ModelRunner* const model_;
  std::vector<NeighborCase> training_;
  const std::vector<NeighborCase> validation_;
  const PriorTunerOptions options_;
  const int64_t memory_bytes_;  // MinibatchBytes
  const std::function<void(const Epoch&)> on_epoch_;
  std::mt19937_64 random_;
  absl::Time epoch_start_;
  Pass pass_;
  ObjectiveSpec batch_;
  CasePreparations preparations_;                     // of the minibatch
  std::unique_ptr<NeighborhoodObjective> objective_;  // of the batch, once all of it is prepared
  Epoch epoch_;
  Epoch first_, best_;
  int worse_epochs_ = 0;
  std::vector<double> shift_, best_shift_;
  Adam adam_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_PRIOR_TUNER_H_
