#ifndef C3PO_SERVER_COMPUTE_ATEN_ATEN_WEIGHTS_H_
#define C3PO_SERVER_COMPUTE_ATEN_ATEN_WEIGHTS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "server/compute/model_weights.h"
#include "server/model/config/model_config.h"

namespace c3po::aten {

// A model's weights as libtorch's tensors, row-major, on one device. Roles and their shapes: WeightRole; what a layer
// does not have is undefined.

// n gated feed-forward networks of f neurons: Expert_e(h) = down_e (silu(gate_e h) * up_e h).
struct ExpertWeights {
  at::Tensor gate_up;  // [n, 2f, d]: gate rows, then up rows, of each
  at::Tensor down;     // [d, n*f]: side by side, so that all together are one matrix; expert e's columns from e*f on

  int64_t count() const { return gate_up.size(0); }           // n
  int64_t neurons() const { return down.size(1) / count(); }  // f
};

struct LayerWeights {
  at::Tensor attention_norm;
  at::Tensor qkv;
  at::Tensor q_norm;
  at::Tensor k_norm;
  at::Tensor output;
  at::Tensor moe_norm;
  at::Tensor router;      // undefined in a dense layer
  ExpertWeights experts;  // likewise
  ExpertWeights shared;   // n = 1: beside the routed experts, or a dense layer's only one
  at::Tensor shared_gate;
  at::Tensor qkv_bias;
  at::Tensor output_bias;

  at::Tensor query_latent_norm;  // of latent attention, as are those below
  at::Tensor query_expand;
  at::Tensor kv_latent_norm;
  at::Tensor kv_expand;
};

struct MoeWeights {
  at::Tensor embedding;
  at::Tensor final_norm;
  at::Tensor lm_head;  // the embedding itself when tied
  std::vector<LayerWeights> layers;

  at::Device device() const { return embedding.device(); }
};

// Copies of all weights, matrices in `dtype`. Norms and biases have it too, but on the CPU, where they are float32;
// all but kQkvBias are rounded to `dtype` first. Errors are those of PackEach, and c10::Error.
MoeWeights PackWeights(const ModelConfig& config, const ModelWeights& weights, at::Device device, at::ScalarType dtype,
                       const LoadProgress& progress = nullptr);

// As they lie in memory; a tied LM head counts once.
int64_t BytesOf(const MoeWeights& weights);

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_ATEN_WEIGHTS_H_
