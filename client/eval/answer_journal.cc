#include "client/eval/answer_journal.h"

#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/eval/option_setting.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

std::string KeyOf(absl::string_view options, absl::string_view question) {
  return absl::StrCat(options, "\n", question);
}

std::string QuestionKey(const TaskItem& item) {
  Fingerprint print;
  print.Add(item.id).Add(item.prompt).Add(item.answer);
  for (const std::string& choice : item.choices) print.Add(choice);
  for (const std::string& own : item.own_references) print.Add(own);
  return absl::StrCat(absl::Hex(print.value(), absl::kZeroPad16));
}

// Whether a file that begins so may be written anew: a journal of any identity, or the beginning of this one, as a kill
// may leave it.
bool IsJournal(absl::string_view text, absl::string_view identity) {
  if (absl::StartsWith(identity, text)) return true;
  const absl::string_view line = text.substr(0, text.find('\n'));
  const auto parse = [](absl::string_view json) {
    return Json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  };
  const Json held = parse(line), own = parse(identity);
  return held.is_object() && own.is_object() && held.value("kept_by", Json()) == own.value("kept_by", Json());
}

absl::Status NotWritten(const std::string& path) {
  return absl::UnavailableError(absl::StrCat(path, ": cannot be written: ", std::strerror(errno)));
}

}  // namespace

Fingerprint& Fingerprint::Add(absl::string_view text) {
  const std::string length = absl::StrCat(text.size(), ":");
  for (const absl::string_view part : {absl::string_view(length), text}) {
    for (const char c : part) value_ = (value_ ^ static_cast<unsigned char>(c)) * 1099511628211u;
  }
  return *this;
}

absl::StatusOr<std::unique_ptr<AnswerJournal>> AnswerJournal::Open(const std::string& path,
                                                                   const std::string& identity) {
  std::error_code error;
  if (const auto folder = std::filesystem::path(path).parent_path(); !folder.empty()) {
    std::filesystem::create_directories(folder, error);
    if (error) return absl::UnavailableError(absl::StrCat(folder.string(), ": cannot be made: ", error.message()));
  }
  std::unique_ptr<AnswerJournal> journal(new AnswerJournal(path));
  absl::MutexLock lock(&journal->mu_);
  // Opened before it is read, for the lock: another calibration may be writing it.
  journal->file_ = std::fopen(path.c_str(), "ab");
  if (journal->file_ == nullptr) return NotWritten(path);
  if (flock(fileno(journal->file_), LOCK_EX | LOCK_NB) != 0)
    return absl::FailedPreconditionError(absl::StrCat(path, ": another calibration keeps its answers there now"));
  C3PO_ASSIGN_OR_RETURN(const bool goes_on, journal->Read(identity));
  if (!goes_on) journal->answers_.clear();
  if (!goes_on && ftruncate(fileno(journal->file_), 0) != 0) return NotWritten(path);
  if (!goes_on && (std::fprintf(journal->file_, "%s\n", identity.c_str()) < 0 || std::fflush(journal->file_) != 0)) {
    return NotWritten(path);
  }
  journal->resumed_ = journal->answers_.size();
  return journal;
}

AnswerJournal::~AnswerJournal() {
  absl::MutexLock lock(&mu_);
  if (file_ != nullptr) std::fclose(file_);
}

absl::StatusOr<bool> AnswerJournal::Read(const std::string& identity) {
  std::ifstream file(path_, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!IsJournal(text, identity)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": holds something else than the answers of a calibration, and is left as it is"));
  }
  size_t at = text.find('\n');
  if (at == std::string::npos || text.substr(0, at) != identity) return false;
  ++at;
  for (size_t end = text.find('\n', at); end != std::string::npos; at = end + 1, end = text.find('\n', at)) {
    const Json line = Json::parse(text.begin() + static_cast<std::ptrdiff_t>(at),
                                  text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, /*allow_exceptions=*/false);
    if (!line.is_object() || !line.contains("options") || !line["options"].is_string() || !line.contains("question") ||
        !line["question"].is_string() || !line.contains("answer")) {
      return false;
    }
    absl::StatusOr<ItemResult> answer = ParseItemResult(line["answer"].dump());
    if (!answer.ok()) return false;
    answers_[KeyOf(line["options"].get<std::string>(), line["question"].get<std::string>())] = *std::move(answer);
  }
  return at == text.size() || truncate(path_.c_str(), static_cast<off_t>(at)) == 0;
}

std::optional<ItemResult> AnswerJournal::Find(const v1::OptimizationOptions& options, const TaskItem& item) const {
  const std::string key = KeyOf(OptionsJson(options), QuestionKey(item));
  absl::MutexLock lock(&mu_);
  const auto found = answers_.find(key);
  if (found == answers_.end()) return std::nullopt;
  return found->second;
}

absl::Status AnswerJournal::Append(const v1::OptimizationOptions& options, const TaskItem& item,
                                   const ItemResult& answer) {
  Json line = {{"options", OptionsJson(options)}, {"question", QuestionKey(item)}};
  line["answer"] = Json::parse(ToJsonLine(answer));
  const std::string text = line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  absl::MutexLock lock(&mu_);
  if (file_ == nullptr) return absl::OkStatus();  // Removed.
  if (std::fwrite(text.data(), 1, text.size(), file_) != text.size() || std::fflush(file_) != 0) {
    return NotWritten(path_);
  }
  answers_[KeyOf(line["options"].get<std::string>(), line["question"].get<std::string>())] = answer;
  return absl::OkStatus();
}

void AnswerJournal::Remove() {
  absl::MutexLock lock(&mu_);
  std::error_code error;
  std::filesystem::remove(path_, error);  // Under the lock: a file of that name is another's as soon as it is free.
  if (file_ != nullptr) std::fclose(file_);
  file_ = nullptr;
}

absl::StatusOr<std::vector<ItemResult>> RememberingScorer::Score(const v1::OptimizationOptions& options,
                                                                 absl::Span<const size_t> questions) {
  std::vector<std::optional<ItemResult>> answers;
  std::vector<size_t> missing;
  for (const size_t question : questions) {
    answers.push_back(journal_.Find(options, task_.items[question]));
    if (!answers.back()) missing.push_back(question);
  }
  std::vector<ItemResult> fresh;
  if (!missing.empty()) {
    C3PO_ASSIGN_OR_RETURN(fresh, asked_.Score(options, missing));
    if (fresh.size() != missing.size()) return absl::InternalError("the scorer left questions without an answer");
  }
  std::vector<ItemResult> results;
  auto next = fresh.begin();
  for (std::optional<ItemResult>& answer : answers) results.push_back(answer ? *std::move(answer) : std::move(*next++));
  return results;
}

}  // namespace c3po
