#ifndef C3PO_SERVER_MODEL_NEIGHBOR_LOSS_H_
#define C3PO_SERVER_MODEL_NEIGHBOR_LOSS_H_

#include <memory>
#include <vector>

#include "server/model/cpu/matrix_products.h"
#include "server/model/moe_model.h"
#include "server/model/tree_attention.h"

namespace c3po {

// J(w) and dJ/dw over a fixed set of neighbors, from their cached states: only the moving rows of all neighbors run,
// through the layers from the first critical one to the LM head, as one batch. The gradient is METHOD's closed form,
//   dl/dw_{l,e} = <dl/do_l, Expert_e(h_l)>,  o_l the MoE output of layer l,
// by one backward sweep; no weight gradient is formed and no autograd graph built. In the first critical layer the
// attention, h, Expert_e(h) and the shared expert do not depend on w: they are computed once, and the sweep stops
// there. Shared experts and dense layers above it are part of the model that w moves, not of w. Loss of neighbor i,
// with p(y | x_i, w) per token and m the number of answer tokens:
//   answer:   l = -1/m sum_t log p(y_t);   choices: l = -log softmax_c(1/m_c sum_t log p(y_{c,t}))[gold].
// Where every neighbor chooses among one-token answers, the softmax's denominator cancels from the cross-entropy, and
// the LM head is read at the choices' tokens only.
class NeighborLoss final : public NeighborhoodObjective {
 public:
  // `model` outlives the objective. InvalidArgument: no case, an index out of range, a state of another first layer.
  static absl::StatusOr<std::unique_ptr<NeighborLoss>> Create(const MoeModel& model, const ObjectiveSpec& spec);

  absl::StatusOr<double> Evaluate(const RoutingOverride& routing, Pathway* gradient) override;

  int64_t correct_choices() const override { return correct_choices_; }

  int64_t rows() const { return entry_hidden_.size(0); }

 private:
  // One layer's activations that the backward sweep reads.
  struct LayerTape {
    at::Tensor input;  // [R, d] entering the layer
    Projections projections;
    TreeAttention::Tape attention;
    at::Tensor middle;  // [R, d] after attention
    at::Tensor normed;  // [R, d]
    Mixing mixing;      // undefined in a dense layer
    FeedForwardTape feed_forward;
  };
  struct Head {
    at::Tensor logits;  // float32 [R, rows of head_]; the backward writes dJ/dlogits over them
    at::Tensor tops;    // float32 [R], the largest of each row
    at::Tensor sums;    // float64 [R]: sum of exp(logits - top)
  };
  struct Target {
    int case_index;
    int continuation;
  };

  NeighborLoss(const MoeModel& model, const ObjectiveSpec& spec);

  void PackRows(const ObjectiveSpec& spec);
  void ChooseHead(const std::vector<int64_t>& target_tokens);
  void PackPrefixes(const ObjectiveSpec& spec);
  void RunAttention(int layer, LayerTape& tape) const;
  at::Tensor RunFirstLayerExperts(const LayerTape& tape);
  at::Tensor FirstLayerGradient(const at::Tensor& doutput) const;
  cpu::WeightView FirstOutputsOf(int64_t row) const;  // [E, d]
  LayerRouting RoutingOf(const RoutingOverride& routing, int moe_layer) const;
  at::Tensor Forward(const RoutingOverride& routing, std::vector<LayerTape>& tapes);  // returns the last hidden state
  // From log-probabilities of the targets: J, and dJ/dlogp of each.
  double Loss(const std::vector<float>& logprobs, std::vector<float>& dlogprobs);
  // Log-probabilities of the targets.
  std::vector<float> ReadHead(const at::Tensor& hidden, Head& head) const;
  at::Tensor HeadBackward(const at::Tensor& hidden, Head& head, const std::vector<float>& dlogprobs) const;
  void Backward(const RoutingOverride& routing, const std::vector<LayerTape>& tapes, at::Tensor dhidden,
                Pathway& gradient);
  // Adds an MoE layer's row to `gradient` if `routing` has it, and returns dJ/dlogits of the router.
  at::Tensor RoutingBackward(const RoutingOverride& routing, int moe_layer, const Mixing& mixing,
                             const at::Tensor& dweights, Pathway& gradient) const;

  const MoeModel& model_;
  const int first_layer_;  // the first critical MoE layer
  const int entry_;        // its decoder layer
  const SurrogateLoss loss_;
  int64_t correct_choices_ = -1;
  std::vector<double> case_weights_;  // normalized kernel weights
  std::vector<int> case_gold_;
  std::vector<std::vector<int>> case_lengths_;  // tokens of each continuation
  std::vector<Target> targets_;
  at::Tensor target_rows_, target_tokens_;  // int64 [T]; tokens as rows of head_
  at::Tensor head_;                         // the LM head, or the rows of it that the loss can tell apart
  std::unique_ptr<TreeAttention> attention_;
  RopeTable rope_;                                       // of the packed rows
  at::Tensor entry_hidden_;                              // [R, d]
  at::Tensor overridden_;                                // bool [R, 1]
  std::vector<at::Tensor> prefix_keys_, prefix_values_;  // per layer from entry_: [S, kv_heads, P, dim]
  LayerTape first_;                                      // fixed part of the first critical layer
  at::Tensor first_shared_;                              // [R, d]: the shared expert's output there; undefined without
  at::Tensor first_outputs_;  // [R, E, d]: Expert_e(h), filled when an expert is first selected
  std::vector<bool> first_outputs_known_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_NEIGHBOR_LOSS_H_
