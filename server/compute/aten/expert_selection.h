#ifndef C3PO_SERVER_COMPUTE_ATEN_EXPERT_SELECTION_H_
#define C3PO_SERVER_COMPUTE_ATEN_EXPERT_SELECTION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "absl/types/span.h"
#include "server/compute/aten/aten_weights.h"
#include "server/compute/backend.h"
#include "server/model/config/model_config.h"

namespace c3po::aten {

// What overrides say about one layer's rows: undefined tensors where no row is overridden.
struct LayerRouting {
  at::Tensor weights;       // float32 [R, E]: replaces the softmax in rows where weights_rows is true
  at::Tensor weights_rows;  // bool [R, 1]
  at::Tensor shift;         // float32 [R, E], zero in other rows: added to the router's logits

  // Of R rows, on the device. Where two overrides of one kind name a row, the later one holds.
  static LayerRouting Make(absl::Span<const RoutingRows> routing, int64_t rows, int64_t experts, at::Device device);
  // Of values on the device already; nothing is copied from the host.
  static LayerRouting OfPlaced(absl::Span<const PlacedRoutingRows> routing, int64_t rows, int64_t experts,
                               at::Device device);
};

// Mixing weights of R rows.
struct Mixing {
  at::Tensor logits;         // float32 [R, E], of the router itself
  at::Tensor probabilities;  // float32 [R, E]: softmax(logits + shift), or the override; rows sum to 1
  at::Tensor selected;       // int64 [R, k], k the most of any row; undefined when k_e = E (all are)
  at::Tensor selected_mask;  // float32 [R, E], 1 where selected; undefined when k_e = E
  at::Tensor total;          // float32 [R, 1]: sum of the selected probabilities, when they are divided by it
  at::Tensor weights;        // float32 [R, E], routed_scaling_factor times the above, zero where not selected
};
// Rows that `counts` names take as many experts as it says: others that were selected beside these weigh 0. There is no
// way back through such rows.
Mixing MixExperts(const at::Tensor& normed, const LayerWeights& layer, const ModelConfig& config,
                  const LayerRouting& routing, absl::Span<const CountedRows> counts = {});
// From dJ/dweights to dJ/dprobabilities; zero where not selected.
at::Tensor MixingBackward(const at::Tensor& dweights, const Mixing& mixing, const ModelConfig& config);
// From what MixingBackward gives to dJ/dlogits of softmax: p * (dp - sum(p * dp)), per row. Where weights are
// normalized the sum is 0 and is left out, so that experts which were not selected have gradient 0.
at::Tensor SoftmaxBackward(const at::Tensor& dprobabilities, const Mixing& mixing, const ModelConfig& config);

// The totals of dJ/dvalues over each override's rows, as Backend::FeedForwardBackward has them: of dprobabilities for
// weights, of dlogits for shifts; both float32 [R, E]. `sums` [n, E] is on their device. Rows of it that no override
// names stay as they are.
void SumOverRouting(absl::Span<const RoutingRows> routing, const at::Tensor& dprobabilities, const at::Tensor& dlogits,
                    const at::Tensor& sums);

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_EXPERT_SELECTION_H_
