#ifndef C3PO_INDEX_TYPES_PATHWAY_H_
#define C3PO_INDEX_TYPES_PATHWAY_H_

#include <vector>

#include "absl/types/span.h"

namespace c3po {

// Mixing weights of the routed experts at one token: row-major [layers, experts], each row non-negative with sum 1 (the
// softmax over all experts, before any top-k). Which MoE layer a row belongs to is the holder's knowledge: a reference keeps
// all MoE layers, an optimizer the critical ones.
struct Pathway {
  int layers = 0;
  int experts = 0;
  std::vector<float> weights;

  Pathway() = default;
  Pathway(int layer_count, int expert_count)
      : layers(layer_count), experts(expert_count), weights(static_cast<size_t>(layer_count) * expert_count) {}

  absl::Span<float> Row(int layer) { return absl::MakeSpan(weights).subspan(size_t(layer) * experts, experts); }
  absl::Span<const float> Row(int layer) const {
    return absl::MakeConstSpan(weights).subspan(size_t(layer) * experts, experts);
  }
};

}  // namespace c3po

#endif  // C3PO_INDEX_TYPES_PATHWAY_H_
