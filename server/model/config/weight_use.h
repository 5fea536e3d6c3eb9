#ifndef C3PO_SERVER_MODEL_CONFIG_WEIGHT_USE_H_
#define C3PO_SERVER_MODEL_CONFIG_WEIGHT_USE_H_

#include <cstdint>

#include "server/model/config/model_config.h"

namespace c3po {

// The matrices and vectors that the blocks of a model read, each made of one stored weight or of several. d = hidden
// size, H = heads * head_dim, G = kv_heads * head_dim, E = experts, f = neurons per expert, s = neurons of the shared
// expert, or of a dense layer's network. Projections are [out, in].
//
// Latent attention, c = kv_rank, p = plain_dim, r = rope_dim, v = value_dim: kQkv is [Q + c + r, d], the queries (Q =
// H) or their latent (Q = query_rank), the latent of keys and values, the rotated part of all heads' keys.
enum class WeightRole {
  // Outside the layers.
  kEmbedding,  // [V, d]
  kFinalNorm,  // [d]
  kHead,       // [V, d]; absent where it is the embedding

  kAttentionNorm,  // [d]
  kQkv,            // [H + 2G, d]: queries, keys, values. Latent: see above
  kQkvBias,        // the rows of kQkv; 0 where none is stored, as of latent attention's direct queries
  kQueryNorm,      // [H], or [head_dim] where it is per head
  kKeyNorm,        // [G] or [head_dim], likewise
  kOutput,         // [d, heads * value_dim]
  kOutputBias,     // [d]

  kQueryLatentNorm,     // [query_rank]
  kQueryExpand,         // [H, query_rank]
  kKeyValueLatentNorm,  // [c]
  kKeyValueExpand,      // [heads * (p + v), c]

  kFeedForwardNorm,  // [d]
  kRouter,           // [E, d]; in MoE layers, as are the experts
  kExpertsGateUp,    // [E 2f, d]: gate rows, then up rows, of each
  kExpertsDown,      // [d, E f]: side by side
  kSharedGateUp,     // [2s, d]
  kSharedDown,       // [d, s]
  kSharedGate,       // [1, d]: the shared expert's output is times sigmoid(shared_gate h)
};

// What a stored weight is for: its first entry is entry (row, column) of a role's matrix.
struct WeightUse {
  WeightRole role = WeightRole::kEmbedding;
  int layer = 0;                // decoder layer
  int64_t row = 0, column = 0;  // a vector is a matrix of one column
  // The last rope_dim rows of each block of so many are stored as interleaved pairs and used as halves; 0: all rows are
  // used as they are stored.
  int64_t paired_block = 0;
  // The weight is stored as its transpose: its entry (r, c) is entry (row + c, column + r). Of no paired block.
  bool transposed = false;

  // Where row i of the weight lies among the rows of its matrix.
  int64_t RowOf(int64_t i, const ModelConfig& config) const;
};

struct MatrixShape {
  int64_t rows = 0, columns = 0;
};
// Of a role that the layer has; a vector's columns: 1.
MatrixShape ShapeOfRole(const ModelConfig& config, WeightRole role, int layer);
bool IsVector(WeightRole role);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CONFIG_WEIGHT_USE_H_
