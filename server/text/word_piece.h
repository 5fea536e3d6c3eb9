#ifndef C3PO_SERVER_TEXT_WORD_PIECE_H_
#define C3PO_SERVER_TEXT_WORD_PIECE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "server/text/token_model.h"

namespace c3po {

// WordPiece as BERT applies it (Devlin et al. 2019, arXiv 1810.04805): the longest piece that starts the word, then the
// longest that goes on, written with a prefix ("##"), and so on. A word that cannot be covered, or is longer than
// max_input_chars_per_word characters, becomes the unknown piece as a whole. Immutable and thread-safe.
class WordPiece final : public TokenModel {
 public:
  // From {"type": "WordPiece", "vocab", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word"}.
  // InvalidArgument: a malformed field, or an unk_token that is not in the vocabulary.
  static absl::StatusOr<std::unique_ptr<const TokenModel>> FromJson(const JsonField& model);

  void Tokenize(absl::string_view word, std::vector<int32_t>* ids) const override;
  bool NeverJoins(char32_t, char32_t) const override { return false; }  // The longest piece is sought in all of a word.
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  WordPiece() = default;

  Vocabulary vocabulary_;
  std::string continuing_prefix_;
  int32_t unknown_id_ = 0;
  int64_t characters_max_ = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_WORD_PIECE_H_
