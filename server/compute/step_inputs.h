#ifndef C3PO_SERVER_COMPUTE_STEP_INPUTS_H_
#define C3PO_SERVER_COMPUTE_STEP_INPUTS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/compute/matrix.h"
#include "server/types/routing_override.h"
#include "server/types/sequence_rows.h"

namespace c3po {

// An override where a backend computes.
struct PlacedOverride {
  RoutingOverride::Kind kind = RoutingOverride::Kind::kWeights;
  std::vector<int> layers;  // decoder layers, ascending
  OwnedMatrix values;       // float32 [layers, E]
};

// Rows [begin, end) of a step's matrix that take an override.
struct OverriddenRows {
  int64_t begin = 0, end = 0;
  const PlacedOverride* routing = nullptr;
};

// Rows [begin, end) of a step's matrix that are given another number of experts than the model's own.
struct CountedRows {
  int64_t begin = 0, end = 0;
  int experts = 0;  // 1 to BackendInfo::experts_per_token_max
};

// What a step of running sequences reads of the host. A view: what it points to lives until the step was read.
struct StepInputs {
  absl::Span<const SequenceRows> sequences;
  absl::Span<const int64_t> tokens;  // [R]; empty where rows do not enter from the embedding
  absl::Span<const OverriddenRows> overrides;
  bool probabilities = false;                 // are wanted of the MoE layers
  absl::Span<const int64_t> head_rows;        // whose logits are wanted, first those with targets
  absl::Span<const int32_t> targets;          // of the first of these
  absl::Span<const CountedRows> counts = {};  // Rows that none names have the model's own number of experts.

  int64_t rows() const;  // R
};

// The matrices of a step; those that are not wanted are empty. The next step may work in the same memory.
struct StepMatrices {
  OwnedMatrix hidden;         // [R, d], the residual stream
  OwnedMatrix probabilities;  // float32 [R, E] of the MoE layer that ran last
  OwnedMatrix logits;         // float32 [head rows, V]
  OwnedMatrix scores;         // float32 [targets, 2]
};

// Steps of the same shape whose matrices lie at the same places enqueue the same work.
struct StepShape {
  int first_layer = 0;  // that runs
  int64_t rows = 0, head_rows = 0, targets = 0;
  bool varies = false;  // It moves rows besides, from or to matrices of its own: no other step is like it.
};

// What the overrides of a step say about rows of one layer.
struct PlacedRoutingRows {
  int64_t begin = 0, end = 0;
  RoutingOverride::Kind kind = RoutingOverride::Kind::kWeights;
  Matrix values;  // float32 [1, E]
};
// `rows` is overwritten, and keeps its memory.
void RoutingOfLayer(absl::Span<const OverriddenRows> overrides, int layer, std::vector<PlacedRoutingRows>& rows);

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_STEP_INPUTS_H_
