#include "server/text/token_model.h"

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/byte_pair_encoding.h"
#include "server/text/word_piece.h"

namespace c3po {

absl::StatusOr<std::unique_ptr<const TokenModel>> TokenModel::FromJson(const JsonField& model) {
  // Files older than the field `type` hold BPE, which alone has merges.
  const bool untyped_bpe = !model.Find("type").has_value() && model.Find("merges").has_value();
  std::string type = "BPE";
  if (!untyped_bpe) {
    C3PO_ASSIGN_OR_RETURN(type, model.StringMember("type"));
  }
  if (type == "BPE") return BytePairEncoding::FromJson(model);
  if (type == "WordPiece") return WordPiece::FromJson(model);
  return model.Error(absl::StrCat("type \"", type, "\" is not supported (BPE and WordPiece are)"));
}

}  // namespace c3po
