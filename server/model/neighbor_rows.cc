#include "server/model/neighbor_rows.h"

#include <algorithm>

namespace c3po {

NeighborRows::NeighborRows(const MoeModel& model, const ObjectiveSpec& spec)
    : model_(model), first_layer_(spec.critical_layers.front()), entry_(model.config().moe_layers[first_layer_]) {
  Backend& backend = model.backend();
  std::vector<TreeCase> cases;
  for (const auto& fixed : spec.states) {
    const auto& state = static_cast<const MoeNeighborState&>(*fixed);
    const int64_t own = state.tree.rows();
    const bool prompt_only = spec.rule == ApplicationRule::kLastPromptToken;
    governed_.emplace_back(rows_, rows_ + (prompt_only ? state.tree.prompt_rows : own));
    cases.push_back({state.shape(), state.states});
    rows_ += own;
  }
  trees_ = backend.PackTrees(cases);
  const OwnedMatrix hidden = backend.AllocateHidden(rows_);
  int64_t row = 0;
  for (const auto& fixed : spec.states) {
    const auto& state = static_cast<const MoeNeighborState&>(*fixed);
    backend.LoadTree(*state.states, hidden.view().Rows(row, state.tree.rows()));
    row += state.tree.rows();
  }
  const PackedTrees* const trees[] = {trees_.get()};
  experts_ = backend.Remember(entry_, backend.TreeAttention(entry_, trees, hidden, nullptr), spec.remembered_bytes_max);
}

void NeighborRows::AppendRouting(const RoutingOverride& routing, int moe_layer, int64_t first_row, int64_t first_sum,
                                 std::vector<RoutingRows>& out) const {
  const auto found = std::lower_bound(routing.layers.begin(), routing.layers.end(), moe_layer);
  if (found == routing.layers.end() || *found != moe_layer) return;
  const auto row = static_cast<int>(found - routing.layers.begin());
  for (const auto& [begin, end] : governed_) {
    out.push_back({first_row + begin, first_row + end, routing.kind, routing.values.Row(row), first_sum + row});
  }
}

OwnedMatrix NeighborRows::RunFirstLayer(absl::Span<const RoutingRows> routing, std::unique_ptr<Tape>* tape) {
  return model_.backend().RunRemembered(*experts_, routing, tape);
}

void NeighborRows::FirstLayerGradient(absl::Span<const RoutingRows> routing, const Tape& tape, const OwnedMatrix& dout,
                                      Matrix sums) const {
  model_.backend().RememberedBackward(*experts_, routing, tape, dout, sums);
}

}  // namespace c3po
