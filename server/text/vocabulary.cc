#include "server/text/vocabulary.h"

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {

absl::StatusOr<Vocabulary> Vocabulary::FromJson(const JsonField& vocab) {
  Vocabulary vocabulary;
  C3PO_RETURN_IF_ERROR(vocab.ForEachMember([&](const std::string& piece, const JsonField& value) -> absl::Status {
    C3PO_ASSIGN_OR_RETURN(const int64_t id, value.AsInteger(0, kTokenIdLimit - 1));
    if (id >= vocabulary.size()) vocabulary.pieces_.resize(id + 1);
    if (vocabulary.pieces_[id].has_value()) {
      return value.Error(absl::StrCat("has id ", id, " as has \"", *vocabulary.pieces_[id], "\""));
    }
    vocabulary.pieces_[id] = piece;
    vocabulary.ids_.emplace(piece, static_cast<int32_t>(id));
    return absl::OkStatus();
  }));
  return vocabulary;
}

std::optional<int32_t> Vocabulary::Find(absl::string_view piece) const {
  const auto found = ids_.find(piece);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

std::optional<absl::string_view> Vocabulary::Piece(int32_t id) const {
  if (id < 0 || id >= size() || !pieces_[id].has_value()) return std::nullopt;
  return *pieces_[id];
}

}  // namespace c3po
