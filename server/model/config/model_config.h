#ifndef C3PO_SERVER_MODEL_CONFIG_MODEL_CONFIG_H_
#define C3PO_SERVER_MODEL_CONFIG_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/model/config/rope_scaling.h"

namespace c3po {

// Attention whose keys and values are expanded from a low-rank latent (DeepSeek-V2, https://arxiv.org/abs/2405.04434,
// section 2.1). Keys and values of each head are formed from it and cached as in any other model.
struct LatentAttention {
  int query_rank = 0;  // 0: queries are projected directly
  int kv_rank = 0;     // width of the latent
  int plain_dim = 0;   // of a head's query and key that is not rotated; head_dim = plain_dim + rope_dim
};

// The part of a Hugging Face config.json that decides the arithmetic of a Mixture-of-Experts decoder. Families differ
// only in these fields and in how they name tensors.
struct ModelConfig {
  enum class Family { kOlmoe, kMixtral, kQwen2Moe, kQwen3Moe, kDeepseek, kDeepseekV2, kGraniteMoe };
  Family family = Family::kOlmoe;
  std::string architecture;  // "OlmoeForCausalLM", "MixtralForCausalLM", ...

  int hidden_size = 0;          // d
  int layers = 0;               // decoder layers, MoE and dense
  std::vector<int> moe_layers;  // decoder layer of each MoE layer, ascending; routers are numbered by this index
  int heads = 0;                // query heads H
  int kv_heads = 0;             // key-value heads; divides H
  int head_dim = 0;             // of queries and keys
  int value_dim = 0;            // of a head's values
  int rope_dim = 0;             // the last entries of a query's and key's head, which are rotated; even
  int intermediate_size = 0;    // neurons per routed expert, f
  int experts = 0;              // E
  int experts_per_token = 0;    // k_e
  int vocabulary_size = 0;      // V
  int context_window = 0;       // positions

  // Routing: softmax; the groups with the largest top probability; the top k_e among them.
  bool norm_topk_prob = false;       // divide the top-k weights by their sum
  double routed_scaling_factor = 1;  // multiplies them
  int expert_groups = 1;             // divides E
  int groups_per_token = 1;

  int shared_intermediate_size = 0;  // neurons of the shared expert beside the routed ones; 0: none
  bool shared_gate = false;          // its output times sigmoid(shared_gate h)
  int dense_intermediate_size = 0;   // neurons of a dense layer; 0 where all layers are MoE

  enum class QkNorm {
    kNone,
    kWhole,    // RMSNorm over the whole query and key vectors before they are cut into heads (OLMoE)
    kPerHead,  // over each head's (Qwen3)
  };
  QkNorm qk_norm = QkNorm::kNone;
  bool qkv_bias = false;
  bool output_bias = false;        // of the attention's output projection
  std::optional<double> clip_qkv;  // clamp of q, k, v to [-c, c]
  std::optional<LatentAttention> latent;
  double attention_scale = 0;  // of q k^T
  double rope_theta = 10000;
  RopeScaling rope_scaling;

  bool tied_embeddings = false;
  double rms_norm_eps = 1e-5;
  double embedding_multiplier = 1;
  double residual_multiplier = 1;  // of each block's output before it is added
  double logits_divisor = 1;
  std::vector<int32_t> eos_token_ids;

  bool IsMoeLayer(int layer) const;
  // Gives value_dim, rope_dim, attention_scale and moe_layers, where they are not set, what a model without latent
  // attention and dense layers has: head_dim, head_dim, 1 / sqrt(head_dim), all.
  void FillDerived();

  // Reads the text of a config.json; `path` names the file in errors. An option that the code does not implement is
  // refused with its name. InvalidArgument: malformed JSON, a missing, mistyped or inconsistent field. Unimplemented:
  // another architecture or option.
  static absl::StatusOr<ModelConfig> Parse(absl::string_view json, const std::string& path);
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CONFIG_MODEL_CONFIG_H_
