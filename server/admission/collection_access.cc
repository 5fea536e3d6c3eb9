#include "server/admission/collection_access.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "index/base/status_macros.h"
#include "index/types/reference_validation.h"

namespace c3po {
namespace {

// "a b" of "a%20b".
absl::StatusOr<std::string> Unescaped(absl::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      result.push_back(text[i]);
      continue;
    }
    const absl::string_view digits = text.substr(i + 1, 2);
    const auto is_digit = [](unsigned char c) { return absl::ascii_isxdigit(c); };
    if (digits.size() < 2 || !std::all_of(digits.begin(), digits.end(), is_digit))
      return absl::InvalidArgumentError("a % must be followed by two hexadecimal digits");
    result += absl::HexStringToBytes(digits);
    i += 2;
  }
  return result;
}

bool Holds(const CollectionNames& names, absl::string_view collection) {
  return names.all || names.names.find(collection) != names.names.end();
}

absl::Status Denied(absl::string_view field, absl::string_view what, absl::string_view collection) {
  return absl::PermissionDeniedError(
      absl::StrCat(field, ": the caller may not ", what, " the collection \"", collection, "\""));
}

}  // namespace

absl::StatusOr<CollectionNames> ParseCollectionNames(absl::string_view text) {
  CollectionNames result;
  for (const absl::string_view word : absl::StrSplit(text, ',')) {
    if (word == "*") {
      result.all = true;
      continue;
    }
    C3PO_ASSIGN_OR_RETURN(std::string name, Unescaped(word));
    if (!ValidateCollectionName(name).ok()) {
      return absl::InvalidArgumentError(
          "every name between commas must be 1 to 128 bytes of UTF-8 without control characters");
    }
    result.names.insert(std::move(name));
  }
  return result;
}

CollectionAccess::CollectionAccess(CollectionNames read, CollectionNames write)
    : names_(std::make_shared<const Names>(Names{std::move(read), std::move(write)})) {}

bool CollectionAccess::SameAs(const CollectionAccess& other) const {
  if (names_ == nullptr || other.names_ == nullptr) return names_ == other.names_;
  return *names_ == *other.names_;
}

bool CollectionAccess::MayRead(absl::string_view collection) const {
  return MayWrite(collection) || Holds(names_->read, collection);
}

bool CollectionAccess::MayWrite(absl::string_view collection) const {
  return names_ == nullptr || Holds(names_->write, collection);
}

std::vector<std::string> CollectionAccess::Readable() const {
  if (names_ == nullptr) return {};
  std::set<std::string, std::less<>> all = names_->read.names;
  all.insert(names_->write.names.begin(), names_->write.names.end());
  return {all.begin(), all.end()};
}

absl::Status CollectionAccess::CheckRead(absl::string_view field, absl::string_view collection) const {
  return MayRead(collection) ? absl::OkStatus() : Denied(field, "read", collection);
}

absl::Status CollectionAccess::CheckWrite(absl::string_view field, absl::string_view collection) const {
  return MayWrite(collection) ? absl::OkStatus() : Denied(field, "change", collection);
}

}  // namespace c3po
