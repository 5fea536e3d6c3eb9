#ifndef C3PO_SERVER_MODEL_MODEL_CONFIG_H_
#define C3PO_SERVER_MODEL_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// The part of a Hugging Face config.json that decides the arithmetic of a Mixture-of-Experts decoder. Families differ
// only in these fields and in how they name tensors.
struct ModelConfig {
  enum class Family { kOlmoe, kMixtral };
  Family family = Family::kOlmoe;
  std::string architecture;  // "OlmoeForCausalLM", "MixtralForCausalLM"

  int hidden_size = 0;          // d
  int layers = 0;               // L; every layer is MoE
  int heads = 0;                // query heads H
  int kv_heads = 0;             // key-value heads; divides H
  int head_dim = 0;             // even
  int intermediate_size = 0;    // neurons per expert, d_ff
  int experts = 0;              // E
  int experts_per_token = 0;    // k_e
  int vocabulary_size = 0;      // V
  int context_window = 0;       // positions
  bool norm_topk_prob = false;  // divide the top-k weights by their sum
  bool qk_norm = false;         // RMSNorm over the whole query and key vectors before they are cut into heads (OLMoE)
  bool tied_embeddings = false;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000;
  std::optional<double> clip_qkv;  // clamp of q, k, v to [-c, c]
  std::vector<int32_t> eos_token_ids;

  // Reads the text of a config.json; `path` names the file in errors. An option that the code does not implement is
  // refused with its name. InvalidArgument: malformed JSON, a missing, mistyped or inconsistent field. Unimplemented:
  // another architecture or option.
  static absl::StatusOr<ModelConfig> Parse(absl::string_view json, const std::string& path);
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_MODEL_CONFIG_H_
