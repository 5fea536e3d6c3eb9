#ifndef C3PO_INDEX_TYPES_PATHWAY_H_
#define C3PO_INDEX_TYPES_PATHWAY_H_

#include <algorithm>
#include <vector>

#include "absl/types/span.h"

namespace c3po {

// Mixing weights of the routed experts at one token: row-major [layers, experts], each row non-negative with sum 1 (the
// softmax over all experts, before any top-k). Which MoE layer a row belongs to is the holder's knowledge: a reference
// keeps all MoE layers, an optimizer the critical ones.
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
  // The chosen rows, in the order of `rows`.
  Pathway Rows(const std::vector<int>& rows) const {
    Pathway chosen(static_cast<int>(rows.size()), experts);
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto row = Row(rows[i]);
      std::copy(row.begin(), row.end(), chosen.Row(static_cast<int>(i)).begin());
    }
    return chosen;
  }
};

}  // namespace c3po

#endif  // C3PO_INDEX_TYPES_PATHWAY_H_
