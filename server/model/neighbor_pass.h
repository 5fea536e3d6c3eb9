#ifndef C3PO_SERVER_MODEL_NEIGHBOR_PASS_H_
#define C3PO_SERVER_MODEL_NEIGHBOR_PASS_H_

#include <ATen/core/Tensor.h>

#include <vector>

#include "server/model/layer_math.h"
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
// formed and no autograd graph built. On the CPU an objective's numbers are bitwise the same in any company.
// Engine thread only; callers hold a c10::InferenceMode.
class NeighborPass {
 public:
  struct Member {
    NeighborRows* rows;
    const RoutingOverride* routing;
  };
  // At least one member, ascending by NeighborRows::entry(). What they point to outlives the pass.
  NeighborPass(const MoeModel& model, std::vector<Member> members);

  // Runs the next layer on the way up; true when it was the last. Then hidden() is [R, d] after it, R rows of all
  // members, in their order.
  bool ForwardLayer();
  const at::Tensor& hidden() const { return hidden_; }
  // After that, on the way down from dJ/dhidden, likewise; then gradients() are each member's dJ/d(routing.values).
  void BeginBackward(at::Tensor dhidden);
  bool BackwardLayer();
  std::vector<Pathway>& gradients() { return gradients_; }

  // Of the layers that have run, in row-layers (server/types/piecewise_work.h).
  int64_t spent() const { return spent_; }
  int64_t rows() const { return first_row_.back(); }

 private:
  // One layer's activations that the backward sweep reads, of the members that joined below it.
  struct LayerTape {
    at::Tensor input;  // [R, d] entering the layer
    Projections projections;
    std::vector<TreeAttention::Tape> attention;  // per member
    at::Tensor middle;                           // [R, d] after attention
    at::Tensor normed;                           // [R, d]
    LayerRouting routing;
    Mixing mixing;  // undefined in a dense layer
    FeedForwardTape feed_forward;
  };

  // The first `count` members' rows, and one member's.
  int64_t RowsOf(size_t count) const { return first_row_[count]; }
  at::Tensor Slice(const at::Tensor& x, size_t member) const {
    return x.narrow(0, first_row_[member], first_row_[member + 1] - first_row_[member]);
  }
  RopeTable RopeOf(size_t count) const;
  LayerRouting JoinRoutings(size_t count, int moe_layer) const;
  at::Tensor RunLayer(int layer, int moe_layer, size_t count, const at::Tensor& hidden, LayerTape& tape) const;
  at::Tensor LayerBackward(int layer, int moe_layer, size_t count, const at::Tensor& dhidden, const LayerTape& tape);
  void TakeGradient(size_t member, int moe_layer, const at::Tensor& dprobabilities, const at::Tensor& dlogits,
                    Pathway& gradient) const;

  const MoeModel& model_;
  const std::vector<Member> members_;
  const int entry_;                 // of the first member
  std::vector<int64_t> first_row_;  // [members + 1]
  RopeTable rope_;                  // of all rows
  std::vector<LayerTape> tapes_;    // per layer from entry_
  int layer_;                       // the next one
  int moe_layer_;                   // likewise, by its number among MoE layers
  size_t joined_ = 0;               // members that have joined, and on the way down have not left
  at::Tensor hidden_, dhidden_;
  std::vector<Pathway> gradients_;
  int64_t spent_ = 0;
  std::vector<Mixing> first_mixings_;  // per member, of its first critical layer
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_NEIGHBOR_PASS_H_
