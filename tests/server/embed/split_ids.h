#ifndef C3PO_TESTS_SERVER_EMBED_SPLIT_IDS_H_
#define C3PO_TESTS_SERVER_EMBED_SPLIT_IDS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace c3po {

// In place of a tokenizer: "1 17 2" -> {1, 17, 2}.
inline absl::StatusOr<std::vector<int32_t>> SplitIds(absl::string_view text) {
  std::vector<int32_t> ids;
  for (absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    if (!absl::SimpleAtoi(word, &ids.emplace_back())) return absl::InvalidArgumentError("not a number");
  }
  return ids;
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_EMBED_SPLIT_IDS_H_
