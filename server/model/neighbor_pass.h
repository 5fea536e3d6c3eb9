#ifndef C3PO_SERVER_MODEL_NEIGHBOR_PASS_H_
#define C3PO_SERVER_MODEL_NEIGHBOR_PASS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "server/compute/backend.h"
#include "server/model/neighbor_rows.h"
#include "server/types/routing_override.h"

namespace c3po {

// One pass over the critical layers, forward and backward, for the rows of several objectives, each under a routing of
// its own. Projections, routers and experts take all rows as one matrix, so that a weight is read once; attention, the
// first critical layer, where what is remembered is each objective's own, and the sums of the gradient go objective by
// objective. One whose first critical layer lies higher joins there, and leaves there on the way back:
//
//   layer        9   10   11   12            rows of a layer's matrix
//   objective a  F    x    x    x            F: the first critical layer, from memory
//   objective b       F    x    x            x: in the matrix, a's rows before b's
//
// The gradient is METHOD's closed form, dJ/dw_{l,e} = <dJ/do_l, Expert_e(h_l)>, by one sweep; no weight gradient is
// formed and no autograd graph built. Where the backend is batch invariant an objective's numbers are bitwise the same
// in any company. Nothing waits for the device but gradients(). Engine thread only.
class NeighborPass {
 public:
  struct Member {
    NeighborRows* rows;
    const RoutingOverride* routing;
  };
  // At least one member, ascending by NeighborRows::entry(). What they point to outlives the pass. Without a gradient
  // there is no way back.
  NeighborPass(const MoeModel& model, std::vector<Member> members, bool with_gradient);

  // Runs the next layer on the way up; true when it was the last. Then hidden() is [R, d] after it, R rows of all
  // members, in their order.
  bool ForwardLayer();
  const OwnedMatrix& hidden() const { return hidden_; }
  // After that, on the way down from dJ/dhidden, likewise; then gradients() are each member's dJ/d(routing.values).
  void BeginBackward(OwnedMatrix dhidden);
  // The same where `sums`, float32 [sum_rows(), E] of zeros, receives the rows of all gradients.
  void BeginBackward(OwnedMatrix dhidden, OwnedMatrix sums);
  bool BackwardLayer();
  std::vector<Pathway> gradients() const;
  // From the sums, on the host.
  std::vector<Pathway> GradientsOf(absl::Span<const float> sums) const;

  // Of the layers that have run, in row-layers (server/types/piecewise_work.h); and of all.
  int64_t spent() const { return spent_; }
  int64_t cost() const;
  int64_t rows() const { return first_row_.back(); }
  int64_t sum_rows() const { return first_sum_.back(); }

 private:
  // One layer's tapes, of the members that joined below it.
  struct LayerTapes {
    std::unique_ptr<Tape> attention, feed_forward;
  };

  int64_t RowsOf(size_t count) const { return first_row_[count]; }  // the first `count` members' rows
  OwnedMatrix Slice(const OwnedMatrix& x, size_t member) const {
    return x.Rows(first_row_[member], first_row_[member + 1] - first_row_[member]);
  }
  absl::Span<const PackedTrees* const> Trees(size_t count) const { return absl::MakeConstSpan(trees_).first(count); }
  std::vector<RoutingRows> Routing(size_t count, int moe_layer) const;
  // One member's, whose rows are a matrix of their own.
  std::vector<RoutingRows> OwnRouting(size_t member, int moe_layer) const;
  bool IsMoe(int layer) const { return model_.config().IsMoeLayer(layer); }

  const MoeModel& model_;
  Backend& backend_;
  const std::vector<Member> members_;
  const bool with_gradient_;
  const int entry_;                                 // of the first member
  std::vector<int64_t> first_row_;                  // [members + 1]
  std::vector<int64_t> first_sum_;                  // [members + 1] rows of sums_
  std::vector<const PackedTrees*> trees_;           // [members]
  std::vector<LayerTapes> tapes_;                   // per layer from entry_
  std::vector<std::unique_ptr<Tape>> first_tapes_;  // per member, of its first critical layer
  int layer_;                                       // the next one
  int moe_layer_;                                   // likewise, by its number among MoE layers
  size_t joined_ = 0;                               // members that have joined, and on the way down have not left
  OwnedMatrix hidden_, dhidden_;
  OwnedMatrix sums_;  // float32: the rows of each member's gradient, one member's after the other's
  int64_t spent_ = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_NEIGHBOR_PASS_H_
