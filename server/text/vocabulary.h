#ifndef C3PO_SERVER_TEXT_VOCABULARY_H_
#define C3PO_SERVER_TEXT_VOCABULARY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/text/json_field.h"

namespace c3po {

// Ids a tokenizer file may use are below this, so that a damaged file cannot ask for gigabytes.
inline constexpr int32_t kTokenIdLimit = 1 << 21;

// A model's pieces and their ids, one to one. Ids may have holes. Immutable and thread-safe.
class Vocabulary {
 public:
  // From an object of piece: id. InvalidArgument: an id that is out of range or given twice.
  static absl::StatusOr<Vocabulary> FromJson(const JsonField& vocab);

  std::optional<int32_t> Find(absl::string_view piece) const;
  // nullopt: no piece has this id. The view lives as long as this vocabulary.
  std::optional<absl::string_view> Piece(int32_t id) const;
  // The largest id + 1.
  int32_t size() const { return static_cast<int32_t>(pieces_.size()); }

 private:
  std::vector<std::optional<std::string>> pieces_;  // By id.
  absl::flat_hash_map<std::string, int32_t> ids_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_VOCABULARY_H_
