#ifndef C3PO_SERVER_MODEL_CONFIG_GGUF_CONFIG_H_
#define C3PO_SERVER_MODEL_CONFIG_GGUF_CONFIG_H_

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/model/config/model_config.h"
#include "server/weights/gguf_file.h"
#include "server/weights/safetensors_file.h"

namespace c3po {

// The tensor of divisors of rotary frequencies; of architecture llama.
inline constexpr char kGgufRopeDivisors[] = "rope_freqs.weight";

// What a GGUF file calls a family: general.architecture, and how its tensors lie.
struct GgufFamily {
  const char* architecture;
  ModelConfig::Family family;
  // The rows of queries and keys, and their biases, are stored as interleaved pairs, as llama.cpp's converter turns
  // them for this architecture; Hugging Face has halves.
  bool paired_heads;
};

// Unimplemented names an architecture that is not known; InvalidArgument: the file names none.
absl::StatusOr<GgufFamily> FamilyOfGguf(const GgufFile& file);

// The text of the config.json that describes the model of a GGUF file, as Hugging Face's class would have it: the same
// ModelConfig comes of both. Float32 values become the shortest decimal that is the same float32, which is what the
// converter read. Where the file does not say:
//   tie_word_embeddings   there is no tensor output.weight
//   attention_bias        there is a tensor blk.0.attn_q.bias or blk.0.attn_qkv.bias
//   norm_topk_prob        expert_weights_norm; else as llama.cpp computes: true in qwen3moe, false elsewhere
//   topk_method           group_limited_greedy where deepseek2 has more than one group
//   vocab_size            the number of tokens
//   eos_token_id          the tokenizer's eos_token_id, eot_token_id and eom_token_id
//   rope_scaling          llama3 where llama has a tensor rope_freqs.weight: the factors by which the converter divides
//                         frequencies, which do not say of what parameters they were made. low_freq_factor is 1,
//                         high_freq_factor 4 and original_max_position_embeddings 8192, as of all Llama 3 models; the
//                         factor is the largest. Unimplemented: that gives other factors.
// `find`: a tensor by its name in any part; null: there is none.
// InvalidArgument names a key that is missing, of another type or inconsistent. Unimplemented names a key of the
// architecture, or of a kind of metadata, that nobody reads: an option would be silently ignored. general.* only
// describes, tokenizer.* is the tokenizer's to refuse.
absl::StatusOr<std::string> ConfigOfGguf(const GgufFile& file,
                                         absl::FunctionRef<const TensorView*(absl::string_view)> find);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CONFIG_GGUF_CONFIG_H_
