#ifndef C3PO_SERVER_COMPUTE_MOE_WEIGHTS_H_
#define C3PO_SERVER_COMPUTE_MOE_WEIGHTS_H_

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/compute/cpu/panels.h"
#include "server/model/config/model_config.h"
#include "server/weights/checkpoint.h"

namespace c3po {

// n gated feed-forward networks of f neurons: Expert_e(h) = down_e (silu(gate_e h) * up_e h).
struct ExpertWeights {
  at::Tensor gate_up;  // [n, 2f, d]: gate rows, then up rows, of each
  at::Tensor down;     // [d, n*f]: side by side, so that all together are one matrix; expert e's columns from e*f on

  int64_t count() const { return gate_up.size(0); }           // n
  int64_t neurons() const { return down.size(1) / count(); }  // f; in panels too
};

// Parameters of one decoder layer, in the layout the arithmetic reads; shapes are those before PackWeights. d = hidden
// size, H = heads * head_dim, G = kv_heads * head_dim, E = experts, f = neurons per expert. Projections are [out, in].
// Biases are as norms: float32 on the CPU.
struct LayerWeights {
  at::Tensor attention_norm;  // [d]
  at::Tensor qkv;             // [H + 2G, d]: queries, keys, values. Latent: see below
  at::Tensor q_norm;          // [H], or [head_dim] where it is per head; undefined without QK-norm
  at::Tensor k_norm;          // [G] or [head_dim], likewise
  at::Tensor output;          // [d, heads * value_dim]
  at::Tensor moe_norm;        // [d]
  at::Tensor router;          // [E, d]; undefined in a dense layer
  ExpertWeights experts;      // n = E routed experts, likewise
  ExpertWeights shared;       // n = 1: beside the routed experts, or a dense layer's only one; undefined without
  at::Tensor shared_gate;     // [1, d]; undefined without
  at::Tensor qkv_bias;        // rows of qkv; undefined without
  at::Tensor output_bias;     // [d]; undefined without

  // Latent attention, c = kv_rank, p = plain_dim, r = rope_dim, v = value_dim: qkv is [Q + c + r, d], the queries (Q =
  // H) or their latent (Q = query_rank), the latent of keys and values, the rotated part of all heads' keys. Rows of
  // rotated parts are reordered from interleaved pairs to halves, which q k^T does not see.
  at::Tensor query_latent_norm;  // [query_rank]; undefined without
  at::Tensor query_expand;       // [H, query_rank], likewise
  at::Tensor kv_latent_norm;     // [c]
  at::Tensor kv_expand;          // [heads * (p + v), c]
};

struct MoeWeights {
  at::Tensor embedding;   // [V, d]
  at::Tensor final_norm;  // [d]
  at::Tensor lm_head;     // [V, d]; the embedding itself when tied
  std::vector<LayerWeights> layers;
  int64_t parameters = 0;

  at::Device device() const { return embedding.device(); }
};

// "float32" or "bfloat16".
std::string DtypeOf(const MoeWeights& weights);
// As they lie in memory.
int64_t BytesOf(const MoeWeights& weights);

// The dtype of the embedding, bfloat16 for one of 8 bits. InvalidArgument: it is missing, or not a floating-point type
// of weights.
absl::StatusOr<at::ScalarType> StoredDtype(const Checkpoint& checkpoint);

// How weights and norms are loaded onto a device.
struct WeightPlacement {
  at::Device device;
  at::ScalarType dtype;                                   // of weights
  at::ScalarType norm_dtype;                              // of norms and biases
  bool huge_pages;                                        // ask the system for them
  cpu::WeightLayout layout = cpu::WeightLayout::kPanels;  // for PackWeights
  std::string arithmetic = "float32";  // of products, as ModelShape tells it: "float32" or "bfloat16"
};

// Copies a checkpoint's tensors (F32, BF16, F16, F8_E4M3) to where and what `placement` says. `progress(done, total)`
// is called per layer. NotFound names a missing tensor; InvalidArgument a wrong shape or dtype, and a tensor that the
// architecture does not have.
absl::StatusOr<MoeWeights> LoadMoeWeights(const Checkpoint& checkpoint, const ModelConfig& config,
                                          const WeightPlacement& placement,
                                          const std::function<void(int, int)>& progress);

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_MOE_WEIGHTS_H_
