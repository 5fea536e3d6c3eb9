#include "client/cli/sample_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <iostream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/terminal.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

using Json = nlohmann::json;

constexpr size_t kLineBytesMax = 3 << 20;    // gRPC servers take messages up to 4 MiB by default.
constexpr uint64_t kReportedLinesMax = 100;  // A file of another kind would else flood the terminal.

bool IsBlank(const std::string& line) { return line.find_first_not_of(" \t\r") == std::string::npos; }

absl::Status ReadText(const Json& object, const char* key, std::string* text) {
  const auto found = object.find(key);
  if (found == object.end()) return absl::InvalidArgumentError(absl::StrCat("\"", key, "\" is missing"));
  if (!found->is_string()) return absl::InvalidArgumentError(absl::StrCat("\"", key, "\" is not a text"));
  *text = found->get<std::string>();
  return absl::OkStatus();
}

absl::Status ReadSample(const Json& object, v1::ReferenceSample* sample) {
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  C3PO_RETURN_IF_ERROR(ReadText(object, "prompt", sample->mutable_prompt()));
  C3PO_RETURN_IF_ERROR(ReadText(object, "answer", sample->mutable_answer()));
  if (const auto choices = object.find("choices"); choices != object.end() && !choices->is_null()) {
    if (!choices->is_array()) return absl::InvalidArgumentError("\"choices\" is not a list");
    for (const Json& choice : *choices) {
      if (!choice.is_string()) return absl::InvalidArgumentError("\"choices\" holds something that is not a text");
      sample->add_choices(choice.get<std::string>());
    }
  }
  if (const auto metadata = object.find("metadata"); metadata != object.end() && !metadata->is_null()) {
    if (!metadata->is_object()) return absl::InvalidArgumentError("\"metadata\" is not an object");
    for (const auto& [name, value] : metadata->items()) {
      (*sample->mutable_metadata())[name] = value.is_string() ? value.get<std::string>() : value.dump();
    }
  }
  return absl::OkStatus();
}

// nlohmann throws; nothing of it leaves this function.
absl::Status ParseSample(const std::string& line, v1::ReferenceSample* sample) {
  if (line.size() > kLineBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("longer than ", kLineBytesMax, " bytes"));
  }
  try {
    return ReadSample(Json::parse(line), sample);
  } catch (const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at ...": the code in brackets says nothing to the reader.
    const std::string what = error.what();
    const size_t text = what.find("] ");
    return absl::InvalidArgumentError(
        absl::StrCat("not JSON: ", Snippet(text == std::string::npos ? what : what.substr(text + 2), 200)));
  }
}

}  // namespace

absl::StatusOr<SampleFile> SampleFile::Open(const std::string& path) {
  SampleFile samples;
  samples.path_ = path;
  if (path != "-") {
    samples.file_ = std::make_unique<std::ifstream>(path, std::ios::binary);
    if (!*samples.file_) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  }
  return samples;
}

absl::StatusOr<std::optional<SampleLine>> SampleFile::Next() {
  std::istream& in = file_ ? static_cast<std::istream&>(*file_) : std::cin;
  std::string line;
  while (std::getline(in, line)) {
    ++number_;
    if (IsBlank(line)) continue;
    SampleLine read;
    read.number = number_;
    read.status = ParseSample(line, &read.sample);
    return read;
  }
  if (in.bad()) return absl::DataLossError(absl::StrCat(path_, ": cannot be read after line ", number_));
  return std::nullopt;
}

uint64_t SampleFile::CountLines(const std::string& path) {
  struct stat status = {};
  if (path == "-" || stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return 0;
  std::ifstream file(path, std::ios::binary);
  uint64_t count = 0;
  for (std::string line; std::getline(file, line);) count += IsBlank(line) ? 0 : 1;
  return count;
}

CLI::Validator SampleFile::IsReadable() {
  return CLI::Validator(
      [](const std::string& path) -> std::string {
        struct stat status = {};
        if (path == "-") return "";
        if (stat(path.c_str(), &status) != 0) return absl::StrCat(path, ": no such file");
        if (S_ISDIR(status.st_mode)) return absl::StrCat(path, ": is a directory");
        if (access(path.c_str(), R_OK) != 0) return absl::StrCat(path, ": may not be read");
        return "";
      },
      "FILE");
}

void MalformedLines::Report(uint64_t line, const std::string& why) {
  ++count_;
  if (count_ <= kReportedLinesMax) absl::FPrintF(stderr, "%s:%d: %s\n", path_, line, WithoutControls(why));
  if (count_ == kReportedLinesMax) absl::FPrintF(stderr, "further malformed lines are only counted\n");
}

absl::Status MalformedLines::Outcome(bool strict) const {
  if (!strict || count_ == 0) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(path_, ": ", count_, count_ == 1 ? " malformed line" : " malformed lines", " (--strict)"));
}

}  // namespace c3po
