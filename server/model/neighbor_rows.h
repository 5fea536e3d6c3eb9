#ifndef C3PO_SERVER_MODEL_NEIGHBOR_ROWS_H_
#define C3PO_SERVER_MODEL_NEIGHBOR_ROWS_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "server/model/cpu/matrix_products.h"
#include "server/model/layer_math.h"
#include "server/model/moe_model.h"
#include "server/model/tree_attention.h"

namespace c3po {

// The moving rows of an objective's neighbors, those of one after those of the other, R in all, with what no pathway w
// changes about them: the prompts' keys and values, and in the first critical layer the attention, h, Expert_e(h) and
// the shared expert. That layer is computed here, from what is remembered; those above it are NeighborPass's.
// Engine thread only; callers hold a c10::InferenceMode.
class NeighborRows {
 public:
  // `model` outlives the rows. The spec's states are MoeNeighborStates of its first critical layer.
  NeighborRows(const MoeModel& model, const ObjectiveSpec& spec);

  int64_t rows() const { return entry_hidden_.size(0); }
  int first_layer() const { return first_layer_; }  // the first critical MoE layer
  int entry() const { return entry_; }              // its decoder layer
  const RopeTable& rope() const { return rope_; }   // of the rows' positions
  const at::Tensor& overridden() const { return overridden_; }

  // Attention of the rows in a decoder layer, from entry() on: to their prompts and answers.
  at::Tensor Attend(int layer, const Projections& own, TreeAttention::Tape* tape) const;
  TreeAttention::Gradients AttendBackward(int layer, const at::Tensor& dcontext, const TreeAttention::Tape& tape) const;

  // What `routing` says about the rows in an MoE layer; nothing where it does not name the layer.
  LayerRouting RoutingOf(const RoutingOverride& routing, int moe_layer) const;

  // The first critical layer: [R, d] leaving it. Fills `mixing`.
  at::Tensor RunFirstLayer(const RoutingOverride& routing, Mixing& mixing);
  // <dJ/do, Expert_e(h)>, float32 [R, E], from dJ/d of what leaves it; `mixing` as the last RunFirstLayer filled it.
  at::Tensor FirstLayerGradient(const at::Tensor& dhidden, const Mixing& mixing) const;

 private:
  void PackRows(const ObjectiveSpec& spec);
  void PackPrefixes(const ObjectiveSpec& spec);
  void RememberFirstLayer(const ObjectiveSpec& spec);
  void RememberExperts(const Mixing& mixing);
  at::Tensor MixRemembered(const Mixing& mixing);  // sum_e w_e Expert_e(h) + Shared(h)
  cpu::WeightView OutputsOf(int64_t row) const;    // [E, d]

  const MoeModel& model_;
  const int first_layer_, entry_;
  std::unique_ptr<TreeAttention> attention_;
  RopeTable rope_;
  at::Tensor entry_hidden_;                              // [R, d]
  at::Tensor overridden_;                                // bool [R, 1]: whether w governs the row
  std::vector<at::Tensor> prefix_keys_, prefix_values_;  // per layer from entry_: [S, kv_heads, P, dim]

  // Of the first critical layer.
  at::Tensor middle_;   // [R, d] after attention
  at::Tensor normed_;   // [R, d]: h
  at::Tensor shared_;   // [R, d]: the shared expert's output; undefined without
  at::Tensor outputs_;  // [R, E, d]: Expert_e(h), filled when an expert is first selected; undefined where too large
  std::vector<bool> outputs_known_;
  ExpertTape experts_tape_;  // of the last run, without outputs_
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_NEIGHBOR_ROWS_H_
