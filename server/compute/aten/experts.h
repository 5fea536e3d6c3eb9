#ifndef C3PO_SERVER_COMPUTE_ATEN_EXPERTS_H_
#define C3PO_SERVER_COMPUTE_ATEN_EXPERTS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "server/compute/aten/aten_weights.h"
#include "server/compute/aten/expert_selection.h"

namespace c3po::aten {

// What a run of the experts leaves for the way back, of B (row, expert) pairs by expert. Where rows take all experts,
// gate, up and activation are [R, E, f], and the others undefined.
struct ExpertTape {
  at::Tensor order;                 // int64 [B] pairs by expert: r * k_e + j of row r's selected[j]
  at::Tensor rows;                  // int64 [B] their rows
  at::Tensor ends;                  // int32 [E] end of each expert's pairs
  at::Tensor pair_weights;          // [B, 1]
  at::Tensor gate, up, activation;  // [B, f]; activation = silu(gate) * up
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
                     const at::Tensor& outputs);

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

// A layer's networks: routed experts under `mixing`, which a dense layer does not read, and the shared one; without
// norm and residual. `tape`, unless null, is filled for FeedForwardBackward, which gives dweights as ExpertsBackward
// does.
struct FeedForwardTape {
  ExpertTape experts;
  SharedTape shared;
};
at::Tensor RunFeedForward(const at::Tensor& normed, const Mixing& mixing, const LayerWeights& layer,
                          FeedForwardTape* tape);
at::Tensor FeedForwardBackward(const at::Tensor& doutput, const at::Tensor& normed, const Mixing& mixing,
                               const LayerWeights& layer, const FeedForwardTape& tape, at::Tensor& dweights);

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_EXPERTS_H_
