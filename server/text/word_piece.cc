#include "server/text/word_piece.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/utf8.h"

namespace c3po {
namespace {

// Covering a word is cubic in its length; real files say 100.
constexpr int64_t kWordCharactersLimit = 1000;

}  // namespace

absl::StatusOr<std::unique_ptr<const TokenModel>> WordPiece::FromJson(const JsonField& json) {
  C3PO_RETURN_IF_ERROR(
      json.ExpectOnly({"type", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab"}));
  std::unique_ptr<WordPiece> model(new WordPiece());
  C3PO_ASSIGN_OR_RETURN(const JsonField vocab, json.Member("vocab"));
  C3PO_ASSIGN_OR_RETURN(model->vocabulary_, Vocabulary::FromJson(vocab));
  C3PO_ASSIGN_OR_RETURN(model->continuing_prefix_, json.StringMember("continuing_subword_prefix"));
  C3PO_ASSIGN_OR_RETURN(const JsonField characters_max, json.Member("max_input_chars_per_word"));
  C3PO_ASSIGN_OR_RETURN(model->characters_max_, characters_max.AsInteger(1, kWordCharactersLimit));
  C3PO_ASSIGN_OR_RETURN(const JsonField unknown, json.Member("unk_token"));
  C3PO_ASSIGN_OR_RETURN(const std::string unknown_piece, unknown.AsString());
  const std::optional<int32_t> unknown_id = model->vocabulary_.Find(unknown_piece);
  if (!unknown_id.has_value()) return unknown.Error(absl::StrCat("\"", unknown_piece, "\" is not in model.vocab"));
  model->unknown_id_ = *unknown_id;
  return std::unique_ptr<const TokenModel>(std::move(model));
}

void WordPiece::Tokenize(absl::string_view word, std::vector<int32_t>* ids) const {
  std::vector<size_t> boundaries = {0};  // Byte offsets between characters.
  for (size_t position = 0; position < word.size();) {
    NextCodePoint(word, &position);
    boundaries.push_back(position);
    if (static_cast<int64_t>(boundaries.size()) > characters_max_ + 1) {
      ids->push_back(unknown_id_);
      return;
    }
  }
  const size_t ids_before = ids->size();
  const size_t last = boundaries.size() - 1;
  std::string candidate;
  for (size_t first = 0; first < last;) {
    std::optional<int32_t> id;
    size_t end = last;
    for (; end > first && !id.has_value(); --end) {
      candidate = first == 0 ? "" : continuing_prefix_;
      absl::StrAppend(&candidate, word.substr(boundaries[first], boundaries[end] - boundaries[first]));
      id = vocabulary_.Find(candidate);
    }
    if (!id.has_value()) {
      ids->resize(ids_before);
      ids->push_back(unknown_id_);
      return;
    }
    ids->push_back(*id);
    first = end + 1;  // The loop stepped once past the match.
  }
}

}  // namespace c3po
