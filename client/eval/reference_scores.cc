#include "client/eval/reference_scores.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kFileName[] = "/reference_scores.jsonl";
constexpr int64_t kFileBytesMax = int64_t{1} << 30;

std::string KeyOf(const ReferenceScore& reference) {
  return absl::StrCat(reference.answer.task, std::string(1, '\0'), reference.answer.id);
}

bool SameQuestion(const ReferenceScore& left, const ReferenceScore& right) {
  return left.prompt == right.prompt && left.choices == right.choices && left.answer.gold == right.answer.gold;
}

// A damaged line must not reach the arithmetic.
bool FitsTogether(const ReferenceScore& reference) {
  const size_t choices = reference.choices.size();
  if (reference.answer.gold < 0 || static_cast<size_t>(reference.answer.gold) >= choices) return false;
  if (!reference.scored()) return true;
  return reference.answer.log_likelihoods.size() == choices && reference.answer.token_counts.size() == choices &&
         reference.answer.byte_counts.size() == choices;
}

}  // namespace

std::string ToJsonLine(const ReferenceScore& reference) {
  Json json = {{"prompt", reference.prompt}, {"choices", reference.choices}};
  json["answer"] = Json::parse(ToJsonLine(reference.answer));
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::vector<ReferenceScore> ParseReferenceScores(absl::string_view lines) {
  std::vector<ReferenceScore> references;
  std::unordered_map<std::string, size_t> places;
  for (const absl::string_view line : absl::StrSplit(lines, '\n', absl::SkipEmpty())) {
    const Json json = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) continue;
    ReferenceScore reference;
    try {
      json.at("prompt").get_to(reference.prompt);
      json.at("choices").get_to(reference.choices);
      absl::StatusOr<ItemResult> answer = ParseItemResult(json.at("answer").dump());
      if (!answer.ok()) continue;
      reference.answer = *std::move(answer);
    } catch (const nlohmann::json::exception&) {
      continue;
    }
    if (!FitsTogether(reference)) continue;
    const auto [place, added] = places.emplace(KeyOf(reference), references.size());
    if (added) {
      references.push_back(std::move(reference));
    } else {
      references[place->second] = std::move(reference);
    }
  }
  return references;
}

absl::StatusOr<std::unique_ptr<ReferenceScoreFile>> ReferenceScoreFile::Open(const std::string& folder,
                                                                             std::vector<ReferenceScore> references) {
  std::unordered_map<std::string, ReferenceScore> held;
  for (ReferenceScore& each : ReadReferenceScores(folder)) {
    std::string key = KeyOf(each);
    held[std::move(key)] = std::move(each);
  }
  std::string text;
  for (ReferenceScore& reference : references) {
    const auto found = held.find(KeyOf(reference));
    if (found != held.end() && SameQuestion(found->second, reference)) reference.answer = found->second.answer;
    absl::StrAppend(&text, ToJsonLine(reference), "\n");
  }
  const std::string path = absl::StrCat(folder, kFileName);
  C3PO_RETURN_IF_ERROR(WriteFileDurably(path, text));
  std::unique_ptr<ReferenceScoreFile> file(new ReferenceScoreFile(path, std::move(references)));
  file->file_ = std::fopen(path.c_str(), "ab");
  if (file->file_ == nullptr) {
    return absl::UnavailableError(absl::StrCat(path, ": cannot be written: ", std::strerror(errno)));
  }
  return file;
}

ReferenceScoreFile::~ReferenceScoreFile() {
  if (file_ != nullptr) std::fclose(file_);
}

absl::Status ReferenceScoreFile::SetAnswer(size_t index, const ItemResult& answer) {
  references_[index].answer = answer;
  const std::string line = ToJsonLine(references_[index]) + "\n";
  if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() || std::fflush(file_) != 0) {
    return absl::UnavailableError(absl::StrCat(path_, ": cannot be written: ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

std::vector<ReferenceScore> ReadReferenceScores(const std::string& folder) {
  const absl::StatusOr<std::string> text = ReadWholeFile(absl::StrCat(folder, kFileName), kFileBytesMax);
  return text.ok() ? ParseReferenceScores(*text) : std::vector<ReferenceScore>();
}

}  // namespace c3po
