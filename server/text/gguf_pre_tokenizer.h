#ifndef C3PO_SERVER_TEXT_GGUF_PRE_TOKENIZER_H_
#define C3PO_SERVER_TEXT_GGUF_PRE_TOKENIZER_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace c3po {

// The stages of a tokenizer.json, as JSON, that the tokenizers have which llama.cpp's converter calls by one name in
// tokenizer.ggml.pre: what their published files hold. "llama3" and "llama-v3" are older names of "llama-bpe".
struct GgufStages {
  std::string normalizer, pre_tokenizer;
  bool ignore_merges = false;  // A word that is a piece as a whole is that piece.
  bool begins = false;         // Texts begin with bos_token where the file does not say.
};

// nullopt: a name that is not known. Pure.
std::optional<GgufStages> StagesOfGguf(absl::string_view pre);

// The known names, for messages.
std::string KnownGgufStages();

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_GGUF_PRE_TOKENIZER_H_
