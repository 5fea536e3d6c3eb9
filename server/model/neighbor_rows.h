#ifndef C3PO_SERVER_MODEL_NEIGHBOR_ROWS_H_
#define C3PO_SERVER_MODEL_NEIGHBOR_ROWS_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "server/compute/backend.h"
#include "server/model/moe_model.h"

namespace c3po {

// The moving rows of an objective's neighbors, those of one after those of the other, R in all, with what no pathway w
// changes about them: the prompts' keys and values, and in the first critical layer all but the mixing weights. That
// layer runs from what is remembered; those above it are NeighborPass's. Engine thread only.
class NeighborRows {
 public:
  // `model` outlives the rows. The spec's states are MoeNeighborStates of its first critical layer.
  NeighborRows(const MoeModel& model, const ObjectiveSpec& spec);

  int64_t rows() const { return rows_; }
  int first_layer() const { return first_layer_; }  // the first critical MoE layer
  int entry() const { return entry_; }              // its decoder layer
  const PackedTrees& trees() const { return *trees_; }

  // What `routing` says about the rows in an MoE layer, where they begin at `first_row` of a matrix; nothing where it
  // does not name the layer. Its gradient goes to row `first_sum` + the layer's row of the routing's values.
  void AppendRouting(const RoutingOverride& routing, int moe_layer, int64_t first_row, int64_t first_sum,
                     std::vector<RoutingRows>& out) const;

  // The first critical layer: [R, d] leaving it.
  OwnedMatrix RunFirstLayer(absl::Span<const RoutingRows> routing, std::unique_ptr<Tape>* tape);
  // Of the last RunFirstLayer with that tape: dJ/dvalues of `routing` from dJ/d of what left the layer.
  void FirstLayerGradient(absl::Span<const RoutingRows> routing, const Tape& tape, const OwnedMatrix& dout,
                          Matrix sums) const;

 private:
  const MoeModel& model_;
  const int first_layer_, entry_;
  int64_t rows_ = 0;
  std::vector<std::pair<int64_t, int64_t>> governed_;  // ranges of rows that w governs
  std::unique_ptr<PackedTrees> trees_;
  std::unique_ptr<RememberedExperts> experts_;  // of the first critical layer
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_NEIGHBOR_ROWS_H_
