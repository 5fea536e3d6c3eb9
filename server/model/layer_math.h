#ifndef C3PO_SERVER_MODEL_LAYER_MATH_H_
#define C3PO_SERVER_MODEL_LAYER_MATH_H_

// The arithmetic of one decoder layer on packed rows, forward and backward, without autograd.
// R rows; d hidden size; E experts; f neurons per expert; k_e experts per token. Tensors are in the model's dtype
// unless float32 is said. Everything here is pure, throws c10::Error on misuse, and may be called from any thread;
// callers hold a c10::InferenceMode.

#include <ATen/core/Tensor.h>

#include <vector>

#include "server/model/model_config.h"
#include "server/model/moe_weights.h"
#include "server/types/routing_override.h"

namespace c3po {

// The elements in row-major order, copied to the host.
std::vector<float> ToFloats(const at::Tensor& x);

// y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension, the mean in float32.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);
// dJ/dx from dJ/dy: with n = x * rstd and g = dy * weight,  dx = rstd * (g - n * mean(g * n)).
at::Tensor RmsNormBackward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, double eps);

// cos and sin of position * w_i, w_i = theta^(-2i / rope_dim) as stretched by the configuration's RopeScaling:
// float32 [context_window, rope_dim / 2] each.
struct RopeTable {
  at::Tensor cos, sin;
  static RopeTable Make(const ModelConfig& config, at::Device device);
  // The rows of `positions` (int64 [R]), as [R, 1, rope_dim / 2] in `dtype`, ready for Rotate.
  RopeTable Select(const at::Tensor& positions, at::ScalarType dtype) const;
};
// x: [R, heads, rope_dim]; halves (a, b) become (a cos - b sin, b cos + a sin). `inverse` turns back: the transposed
// rotation, which is also its gradient.
at::Tensor Rotate(const at::Tensor& x, const RopeTable& rope, bool inverse = false);

// x w^T plus a bias of w's rows, where there is one.
at::Tensor Project(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias);

// Queries, keys and values of R rows after norm, clip and rotation.
struct Projections {
  at::Tensor q;    // [R, heads, head_dim]
  at::Tensor k;    // [R, kv_heads, head_dim]
  at::Tensor v;    // [R, kv_heads, value_dim]
  at::Tensor raw;  // [R, rows of LayerWeights::qkv]: before QK-norm and rotation, for the backward pass
};
Projections ProjectAttention(const at::Tensor& normed, const LayerWeights& layer, const ModelConfig& config,
                             const RopeTable& rope);
// dJ/dnormed from dJ/dq, dJ/dk, dJ/dv (shapes as above).
at::Tensor ProjectAttentionBackward(const at::Tensor& dq, const at::Tensor& dk, const at::Tensor& dv,
                                    const Projections& forward, const LayerWeights& layer, const ModelConfig& config,
                                    const RopeTable& rope);

// x + residual_multiplier * block; and dJ/dblock from dJ/d of that sum.
at::Tensor AddBlock(const at::Tensor& x, const at::Tensor& block, const ModelConfig& config);
at::Tensor AddBlockBackward(const at::Tensor& dsum, const ModelConfig& config);

// What overrides say about one layer's rows: undefined tensors where no row is overridden.
struct LayerRouting {
  at::Tensor weights;       // float32 [R, E]: replaces the softmax in rows where weights_rows is true
  at::Tensor weights_rows;  // bool [R, 1]
  at::Tensor shift;         // float32 [R, E], zero in other rows: added to the router's logits
};

// Mixing weights of R rows.
struct Mixing {
  at::Tensor logits;         // float32 [R, E], of the router itself
  at::Tensor probabilities;  // float32 [R, E]: softmax(logits + shift), or the override; rows sum to 1
  at::Tensor selected;       // int64 [R, k_e]; undefined when k_e = E (all are)
  at::Tensor selected_mask;  // float32 [R, E], 1 where selected; undefined when k_e = E
  at::Tensor total;          // float32 [R, 1]: sum of the selected probabilities, when they are divided by it
  at::Tensor weights;        // float32 [R, E], routed_scaling_factor times the above, zero where not selected
};
Mixing MixExperts(const at::Tensor& normed, const LayerWeights& layer, const ModelConfig& config,
                  const LayerRouting& routing);
// From dJ/dweights to dJ/dprobabilities; zero where not selected.
at::Tensor MixingBackward(const at::Tensor& dweights, const Mixing& mixing, const ModelConfig& config);
// From what MixingBackward gives to dJ/dlogits of softmax: p * (dp - sum(p * dp)), per row. Where weights are normalized
// the sum is 0 and is left out, so that experts which were not selected have gradient 0.
at::Tensor SoftmaxBackward(const at::Tensor& dprobabilities, const Mixing& mixing, const ModelConfig& config);

// What a run of the experts leaves for the way back, of B (row, expert) pairs: by expert where rows select some, by row
// where they take all.
struct ExpertTape {
  // ATen's. Where rows take all, gate, up and activation are [R, E, f], and the others undefined.
  at::Tensor order;                 // int64 [B] pairs by expert: r * k_e + j of row r's selected[j]
  at::Tensor rows;                  // int64 [B] their rows
  at::Tensor ends;                  // int32 [E] end of each expert's pairs
  at::Tensor pair_weights;          // [B, 1]
  at::Tensor gate, up, activation;  // [B, f]; activation = silu(gate) * up

  // The CPU's kernels'. Where rows take all, without `assigned`, `offsets` and `pairs`.
  std::vector<int64_t> assigned;  // [B] rows
  std::vector<int64_t> pairs;     // [R, k_e] each row's, ascending by expert
  std::vector<int64_t> offsets;   // [E + 1] first pair of each expert
  at::Tensor gate_up;             // [B, 2f]
  at::Tensor scale;               // [B] mixing weights
};

// sum_e weights[r, e] * Expert_e(normed[r]), Expert_e(h) = down_e (silu(gate_e h) * up_e h). Experts that no row
// selects are not read. `tape`, unless null, is filled for ExpertsBackward.
at::Tensor RunExperts(const at::Tensor& normed, const Mixing& mixing, const ExpertWeights& networks, ExpertTape* tape);
// From dJ/doutput ([R, d]): fills dweights (float32 [R, E], <dJ/doutput, Expert_e(h)> where selected, else 0) and
// returns dJ/dnormed.
at::Tensor ExpertsBackward(const at::Tensor& doutput, const at::Tensor& normed, const Mixing& mixing,
                           const ExpertWeights& networks, const ExpertTape& tape, at::Tensor& dweights);
// outputs[:, e] = Expert_e(normed) for the chosen experts; outputs [R, E, d], contiguous.
void RunExpertsApart(const at::Tensor& normed, const ExpertWeights& networks, const std::vector<int64_t>& chosen,
                     at::Tensor& outputs);

// What runs in every row whatever the router says: the shared expert, times sigmoid(shared_gate h) where it is gated,
// or a dense layer's network.
struct SharedTape {
  Mixing mixing;  // weights [R, 1]: 1, or the gate's sigmoid
  ExpertTape experts;
};
// Of a layer that has one. `tape`, unless null, is filled for SharedBackward.
at::Tensor RunShared(const at::Tensor& normed, const LayerWeights& layer, SharedTape* tape);
// dJ/dnormed from dJ/doutput.
at::Tensor SharedBackward(const at::Tensor& doutput, const at::Tensor& normed, const LayerWeights& layer,
                          const SharedTape& tape);

// A layer's whole feed-forward block: routed experts under `mixing`, which a dense layer does not read, and the shared
// one. `tape`, unless null, is filled for FeedForwardBackward, which gives dweights as ExpertsBackward does.
struct FeedForwardTape {
  ExpertTape experts;
  SharedTape shared;
};
at::Tensor RunFeedForward(const at::Tensor& normed, const Mixing& mixing, const LayerWeights& layer,
                          FeedForwardTape* tape);
at::Tensor FeedForwardBackward(const at::Tensor& doutput, const at::Tensor& normed, const Mixing& mixing,
                               const LayerWeights& layer, const FeedForwardTape& tape, at::Tensor& dweights);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_LAYER_MATH_H_
