#include "server/weights/gguf_parts.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr size_t kPartDigits = 5;

// Of "X-00001-of-00003.gguf".
struct PartName {
  std::string stem;  // "X"
  int number, count;
};

std::optional<PartName> ParsePartName(absl::string_view path) {
  constexpr absl::string_view kEnd = ".gguf", kOf = "-of-";
  constexpr size_t kLength = 1 + kPartDigits + kOf.size() + kPartDigits + kEnd.size();
  if (path.size() <= kLength || !absl::EndsWith(path, kEnd)) return std::nullopt;
  const absl::string_view tail = path.substr(path.size() - kLength);
  PartName name{std::string(path.substr(0, path.size() - kLength)), 0, 0};
  const absl::string_view number = tail.substr(1, kPartDigits);
  const absl::string_view count = tail.substr(1 + kPartDigits + kOf.size(), kPartDigits);
  const auto digits = [](absl::string_view text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  };
  const bool form =
      tail[0] == '-' && tail.substr(1 + kPartDigits, kOf.size()) == kOf && digits(number) && digits(count);
  if (!form || !absl::SimpleAtoi(number, &name.number) || !absl::SimpleAtoi(count, &name.count)) return std::nullopt;
  return name;
}

// A part's own words on which part it is.
absl::Status CheckPart(const GgufFile& file, int64_t number, int64_t count) {
  const std::pair<const char*, int64_t> expected[] = {{"split.no", number}, {"split.count", count}};
  for (const auto& [key, value] : expected) {
    const GgufValue* const stored = file.Find(key);
    // A file that was never split may lack both.
    if (stored == nullptr && count == 1) continue;
    const std::optional<int64_t> stated = stored == nullptr ? std::nullopt : stored->Integer();
    if (stated == value || (count == 1 && stated == 0)) continue;
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": key \"", key, "\" ",
                                                   stated ? absl::StrCat("is ", *stated) : std::string("is missing"),
                                                   ", but the file is part ", number, " (from 0) of ", count));
  }
  return absl::OkStatus();
}

}  // namespace

bool IsGgufPath(absl::string_view path) { return absl::EndsWith(path, ".gguf"); }

std::string GgufStem(absl::string_view path) {
  if (std::optional<PartName> part = ParsePartName(path)) return std::move(part->stem);
  return std::string(absl::StripSuffix(path, ".gguf"));
}

absl::StatusOr<std::vector<std::unique_ptr<GgufFile>>> OpenGgufParts(const std::string& path) {
  const std::optional<PartName> name = ParsePartName(path);
  if (name && name->number != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is part ", name->number, " of ", name->count, "; name the first one"));
  }
  const int count = name ? name->count : 1;
  if (count < 1) return absl::InvalidArgumentError(absl::StrCat(path, ": is part 1 of ", count));
  std::vector<std::unique_ptr<GgufFile>> parts;
  std::map<std::string, const GgufFile*> owners;
  for (int i = 0; i < count; ++i) {
    const std::string part_path = name ? absl::StrFormat("%s-%05d-of-%05d.gguf", name->stem, i + 1, name->count) : path;
    C3PO_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> part, GgufFile::Open(part_path));
    C3PO_RETURN_IF_ERROR(CheckPart(*part, i, count));
    for (const auto& [tensor, view] : part->tensors()) {
      if (owners.emplace(tensor, part.get()).second) continue;
      return absl::InvalidArgumentError(absl::StrCat(part_path, ": tensor ", Quoted(tensor), " is in two parts"));
    }
    parts.push_back(std::move(part));
  }
  const GgufValue* const total = parts.front()->Find("split.tensors.count");
  if (total != nullptr && total->Integer() != static_cast<int64_t>(owners.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": key \"split.tensors.count\" is not the number of tensors, ", owners.size()));
  }
  return parts;
}

}  // namespace c3po
