#include "index/types/reference_id.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "index/base/sha256.h"

namespace c3po {
namespace {

void UpdateWithNumber(Sha256& hash, uint64_t number) {
  char bytes[8];
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(number >> (8 * i) & 0xff);
  hash.Update(absl::string_view(bytes, sizeof(bytes)));
}

void UpdateWithText(Sha256& hash, absl::string_view text) {
  UpdateWithNumber(hash, text.size());
  hash.Update(text);
}

}  // namespace

std::string ReferenceId(absl::string_view collection, const ReferenceSample& sample) {
  if (!sample.id.empty()) return absl::StrCat(collection, ":", sample.id);
  Sha256 hash;
  UpdateWithText(hash, collection);
  UpdateWithText(hash, sample.prompt);
  UpdateWithText(hash, sample.answer);
  UpdateWithNumber(hash, sample.choices.size());
  for (const std::string& choice : sample.choices) UpdateWithText(hash, choice);
  return hash.HexDigest().substr(0, 32);
}

absl::string_view OwnIdOf(absl::string_view collection, absl::string_view reference_id) {
  if (!absl::ConsumePrefix(&reference_id, collection) || !absl::ConsumePrefix(&reference_id, ":")) return {};
  return reference_id;
}

}  // namespace c3po
