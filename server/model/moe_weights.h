#ifndef C3PO_SERVER_MODEL_MOE_WEIGHTS_H_
#define C3PO_SERVER_MODEL_MOE_WEIGHTS_H_

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/model_config.h"
#include "server/weights/checkpoint.h"

namespace c3po {

// Parameters of one decoder layer, in the layout the arithmetic reads. d = hidden size, H = heads * head_dim,
// G = kv_heads * head_dim, E = experts, f = neurons per expert. Projections are [out, in].
struct LayerWeights {
  at::Tensor attention_norm;  // [d]
  at::Tensor qkv;             // [H + 2G, d]: queries, keys, values
  at::Tensor q_norm;          // [H], undefined without QK-norm
  at::Tensor k_norm;          // [G], likewise
  at::Tensor output;          // [d, H]
  at::Tensor moe_norm;        // [d]
  at::Tensor router;          // [E, d]
  at::Tensor gate_up;         // [E, 2f, d]: gate rows, then up rows, of each expert
  at::Tensor down;            // [E, f, d]: transposed, so that all experts together are one [E*f, d] matrix
};

struct MoeWeights {
  at::Tensor embedding;   // [V, d]
  at::Tensor final_norm;  // [d]
  at::Tensor lm_head;     // [V, d]; the embedding itself when tied
  std::vector<LayerWeights> layers;
  int64_t parameters = 0;
};

// The dtype of the embedding. InvalidArgument: it is missing, or not a floating-point type of weights.
absl::StatusOr<at::ScalarType> StoredDtype(const Checkpoint& checkpoint);

// Copies a checkpoint's tensors, converted to `dtype` (norms on the CPU: to float32), onto `device`. `progress(done,
// total)` is called per layer. InvalidArgument names a missing tensor, a wrong shape or dtype, and a tensor that the
// architecture does not have.
absl::StatusOr<MoeWeights> LoadMoeWeights(const Checkpoint& checkpoint, const ModelConfig& config, at::ScalarType dtype,
                                          at::Device device, const std::function<void(int, int)>& progress);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_MOE_WEIGHTS_H_
