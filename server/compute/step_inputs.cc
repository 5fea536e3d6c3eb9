#include "server/compute/step_inputs.h"

#include <algorithm>

namespace c3po {

int64_t StepInputs::rows() const {
  int64_t all = 0;
  for (const SequenceRows& sequence : sequences) all = std::max(all, sequence.first_row + sequence.rows);
  return all;
}

void RoutingOfLayer(absl::Span<const OverriddenRows> overrides, int layer, std::vector<PlacedRoutingRows>& rows) {
  rows.clear();
  for (const OverriddenRows& overridden : overrides) {
    const std::vector<int>& layers = overridden.routing->layers;
    const auto found = std::lower_bound(layers.begin(), layers.end(), layer);
    if (found == layers.end() || *found != layer) continue;
    rows.push_back({overridden.begin, overridden.end, overridden.routing->kind,
                    overridden.routing->values.view().Rows(found - layers.begin(), 1)});
  }
}

}  // namespace c3po
