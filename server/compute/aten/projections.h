#ifndef C3PO_SERVER_COMPUTE_ATEN_PROJECTIONS_H_
#define C3PO_SERVER_COMPUTE_ATEN_PROJECTIONS_H_

#include <ATen/core/Tensor.h>

#include "server/compute/aten/aten_weights.h"
#include "server/compute/aten/rope_tensors.h"
#include "server/model/config/model_config.h"

namespace c3po::aten {

// Queries, keys and values of R rows after norm, clip and rotation.
struct Projections {
  at::Tensor q;    // [R, heads, head_dim]
  at::Tensor k;    // [R, kv_heads, head_dim]
  at::Tensor v;    // [R, kv_heads, value_dim]
  at::Tensor raw;  // [R, rows of LayerWeights::qkv]: before QK-norm and rotation, for the backward pass

  // `raw` is left out.
  Projections Rows(int64_t begin, int64_t count) const {
    return {q.narrow(0, begin, count), k.narrow(0, begin, count), v.narrow(0, begin, count), {}};
  }
  // Copies of those that `rows`, int64, names; likewise.
  Projections Select(const at::Tensor& rows) const {
    return {q.index_select(0, rows), k.index_select(0, rows), v.index_select(0, rows), {}};
  }
};
// From normed [R, d]; `rope` of the rows.
Projections ProjectAttention(const at::Tensor& normed, const LayerWeights& layer, const ModelConfig& config,
                             const RopeTensors& rope);
// dJ/dnormed from dJ/dq, dJ/dk, dJ/dv (shapes as above).
at::Tensor ProjectAttentionBackward(const at::Tensor& dq, const at::Tensor& dk, const at::Tensor& dv,
                                    const Projections& forward, const LayerWeights& layer, const ModelConfig& config,
                                    const RopeTensors& rope);

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_PROJECTIONS_H_
