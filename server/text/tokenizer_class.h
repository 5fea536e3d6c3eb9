#ifndef C3PO_SERVER_TEXT_TOKENIZER_CLASS_H_
#define C3PO_SERVER_TEXT_TOKENIZER_CLASS_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace c3po {

// What a tokenizer class of transformers puts around a text in place of tokenizer.json's own post_processor.
struct SurroundingTokens {
  std::optional<std::string> before;  // The bos_token, as the vocabulary spells it,
  std::optional<std::string> after;   // and the eos_token.
};

// Reads a model folder's tokenizer_config.json: tokenizer_class, add_bos_token, add_eos_token, bos_token, eos_token.
// Only some classes heed the two flags. This is what the classes of transformers 4.57.6 do, by running them
// (tests/golden/tokenizer/make_surrounding_goldens.py), with and without "Fast" at the end of their names:
//   LlamaTokenizer, CodeLlamaTokenizer, GemmaTokenizer, CohereTokenizer   heeded; add_bos_token is true by default
//   GPTNeoXTokenizer                                                      heeded; false by default
//   PreTrainedTokenizer, Qwen2Tokenizer, GPT2Tokenizer and all others     ignored: post_processor stays
// A class that heeds them drops the file's post_processor even where both are false. A missing tokenizer_class is
// that of config.json (tokenizer_class, else by model_type: mixtral, deepseek_v2, deepseek_v3 and llama are
// LlamaTokenizer, olmoe and gpt_neox GPTNeoXTokenizer).
// transformers 5 ignores both flags wherever there is a tokenizer.json, and writes neither. Folders it has saved have a
// field "backend", and their post_processor stays.
//
// nullopt: the file's own post_processor stays; also where there is no tokenizer_config.json. InvalidArgument: a
// malformed field, or a flag that is true without its token, naming file and field.
absl::StatusOr<std::optional<SurroundingTokens>> ReadSurroundingTokens(const std::string& folder);

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_TOKENIZER_CLASS_H_
