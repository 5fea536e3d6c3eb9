#ifndef C3PO_SERVER_TEXT_GGUF_TOKENIZER_H_
#define C3PO_SERVER_TEXT_GGUF_TOKENIZER_H_

#include <string>

#include "absl/status/statusor.h"

namespace c3po {

// What the metadata of a GGUF file say of its tokenizer, as the files of a Hugging Face folder that give the same ids:
// the texts of tokenizer.json and tokenizer_config.json.
//   tokenizer.ggml.model  "gpt2": byte-level BPE with `merges`, behind the normalizer and pre-tokenizer that `pre`
//                         names (gguf_pre_tokenizer.h). "llama": SentencePiece BPE with byte fallback; its merges are
//                         found from `scores`, as transformers finds them from a tokenizer.model: each piece of two
//                         other pieces, the higher score first.
//   token_type            normal, unknown and byte: pieces; control: special added tokens; user-defined: added tokens;
//                         unused: no pieces.
//   add_bos_token, add_eos_token: tokens around texts. Without them: begin, of SentencePiece, "llama-bpe", "tekken".
//   tokenizer.chat_template, and tokenizer.chat_template.tool_use
// What the format cannot say is lost: lstrip, rstrip and single_word of added tokens are false, and what looks like a
// control token to the converter is special.
struct GgufTokenizer {
  std::string tokenizer_json, config_json;
};

// The file's first part. Unimplemented names a model, a `pre` or a key of tokenizer.* that is not known;
// InvalidArgument a key that is missing, of another type or inconsistent, pieces that are not UTF-8 or appear twice,
// and scores that order nothing. Else errors of GgufFile::Open.
absl::StatusOr<GgufTokenizer> ReadGgufTokenizer(const std::string& path);

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_GGUF_TOKENIZER_H_
