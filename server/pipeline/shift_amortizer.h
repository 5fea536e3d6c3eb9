#ifndef C3PO_SERVER_PIPELINE_SHIFT_AMORTIZER_H_
#define C3PO_SERVER_PIPELINE_SHIFT_AMORTIZER_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/pathway/pathway_optimizer.h"
#include "server/pipeline/case_preparations.h"
#include "server/pipeline/learned_shifts.h"
#include "server/pipeline/optimization_settings.h"
#include "server/types/model_runner.h"
#include "server/types/sequence_request.h"

namespace c3po {

// What an amortized shift depends on, as text: shifts found with the same are not found again.
std::string ShiftSettingsText(const OptimizationSettings& settings);

// Finds, for each of some references, the router shift that gradient descent on its own loss gives (ours, "amortized"):
// one problem of a single neighbor each, from a zero shift. Which experts are core is judged by the reference's stored
// pathway. A task of the engine: a unit prepares a reference, or a part of it, or is the evaluation of one gradient
// step. Used by the engine thread.
class ShiftAmortizer final : public OptimizationTask {
 public:
  struct Reference {
    NeighborCase neighbor;
    Pathway pathway;  // all MoE layers
  };
  // `on_shift` may return an error, which ends the task. `model` outlives it.
  ShiftAmortizer(ModelRunner* model, std::vector<Reference> references, OptimizationSettings settings,
                 std::function<absl::Status(ReferenceShift)> on_shift);

  absl::StatusOr<bool> Step(int64_t row_layers) override;
  std::optional<Evaluation> Ask() const override;
  absl::StatusOr<bool> Tell(const LossAndGradient& result, double seconds) override;
  int64_t memory_bytes() const override { return memory_bytes_; }
  std::shared_ptr<const RoutingOverride> routing() const override { return nullptr; }

 private:
  absl::Status Prepare(int64_t row_layers);
  absl::Status Begin();
  absl::StatusOr<bool> Conclude();

  ModelRunner* const model_;
  const std::vector<Reference> references_;
  const OptimizationSettings settings_;
  const std::function<absl::Status(ReferenceShift)> on_shift_;
  int64_t memory_bytes_ = 0;  // of the reference that takes the most
  size_t next_ = 0;
  ObjectiveSpec spec_;  // of the next one
  CasePreparations preparations_;
  std::unique_ptr<NeighborhoodObjective> objective_;
  std::unique_ptr<PathwayOptimizer> optimizer_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_SHIFT_AMORTIZER_H_
