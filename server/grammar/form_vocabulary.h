#ifndef C3PO_SERVER_GRAMMAR_FORM_VOCABULARY_H_
#define C3PO_SERVER_GRAMMAR_FORM_VOCABULARY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/text/tokenizer.h"

namespace c3po {

// What forms are compiled for: the bytes that each token of a model adds to a text, and the tokens that end it.
struct FormVocabulary {
  // By id, as many as the model has. Empty: never part of an answer with a form: special tokens, ids without a token.
  std::vector<std::string> tokens;
  std::vector<int32_t> end_tokens;
};

// tokenizer: byte-level, with byte fallback or WordPiece; Tokenizer::TokenBytes is what counts, and a token's bytes
// keep their space, as an answer follows a prompt. vocabulary: the model's, at least the tokenizer's.
FormVocabulary VocabularyOf(const Tokenizer& tokenizer, int vocabulary, absl::Span<const int32_t> end_tokens);

// As bytes for another process, and back. InvalidArgument: not such bytes.
std::string BytesOf(const FormVocabulary& vocabulary);
absl::StatusOr<FormVocabulary> VocabularyFromBytes(absl::string_view bytes);

}  // namespace c3po

#endif  // C3PO_SERVER_GRAMMAR_FORM_VOCABULARY_H_
