#ifndef C3PO_SERVER_MODEL_FORWARD_STEP_H_
#define C3PO_SERVER_MODEL_FORWARD_STEP_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/compute/backend.h"
#include "server/compute/step_inputs.h"
#include "server/model/config/model_config.h"
#include "server/types/model_runner.h"

namespace c3po {

// The forward pass of running sequences: the walk over the layers, what is captured on the way, and what is read at its
// end. Its memory is kept from pass to pass, so that a pass like the one before takes none. Engine thread only.
class ForwardStep {
 public:
  // Both outlive it.
  ForwardStep(const ModelConfig& config, Backend& backend);

  // An override that segments can name. Internal: it is none of this model.
  absl::StatusOr<std::shared_ptr<const PlacedRouting>> Place(const RoutingOverride& routing);

  // Runs segments that were checked; those that enter at different layers one group after the other. outputs[i],
  // overwritten, is of segments[i]. Throws what the backend throws.
  void Run(absl::Span<const Segment> segments, std::vector<SegmentOutput>& outputs);

 private:
  // The rows of one segment within the step's matrix.
  struct RowSpan {
    const Segment* segment;
    SegmentOutput* output;
    int64_t first_row;
    int64_t rows;
    std::shared_ptr<RowSum> state = nullptr;  // of its last row, where it is wanted

    int64_t last_row() const { return first_row + rows - 1; }
    bool scored() const { return !segment->targets.empty(); }
  };

  void RunGroup(int entry_layer);
  void PlaceRows();
  void PlaceHeadRows();
  void PlaceOverrides();
  void Enter(int entry_layer);
  void CaptureEntry(int moe_layer);
  void CaptureStates(int moe_layer);
  void CapturePathway(int moe_layer);
  void CaptureRoutes(int moe_layer);
  void Deliver();
  void DeliverScores();
  void DeliverCaptures();
  void DeliverRoutes();
  int64_t moe_layers() const { return static_cast<int64_t>(config_.moe_layers.size()); }

  const ModelConfig& config_;
  Backend& backend_;

  std::vector<size_t> order_;  // of the segments, by the layer that they enter at
  // Of the group that runs:
  std::vector<RowSpan> spans_;
  std::vector<SequenceRows> sequences_;
  std::vector<OverriddenRows> overrides_;
  std::vector<CountedRows> counts_;
  std::vector<int64_t> tokens_;
  std::vector<int64_t> head_rows_;  // whose logits are computed: those with targets, then those that are read out
  std::vector<int32_t> targets_;
  std::vector<const ReadoutRequest*> requests_;
  std::vector<Readout*> readouts_;
  std::vector<float> scores_on_host_, pathways_on_host_, routes_on_host_;
  int64_t rows_ = 0, captures_ = 0, sums_ = 0;
  int64_t routed_ = 0;  // rows whose experts are wanted
  int first_routed_layer_ = 0;
  StepMatrices step_;
  OwnedMatrix entries_;   // [captures, d], which the captures keep
  OwnedMatrix pathways_;  // float32 [captures * MoE layers, E]
  OwnedMatrix routes_;    // float32 [MoE layers that run * routed rows, E]: probabilities
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_FORWARD_STEP_H_
