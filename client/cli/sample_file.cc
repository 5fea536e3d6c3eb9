#include "client/cli/sample_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <iostream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/terminal.h"
#include "client/eval/sample_line.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr uint64_t kReportedLinesMax = 100;  // A file of another kind would else flood the terminal.

bool IsBlank(const std::string& line) { return line.find_first_not_of(" \t\r") == std::string::npos; }

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
    absl::StatusOr<v1::ReferenceSample> sample = ParseSampleLine(line, &read.unread);
    if (sample.ok()) {
      read.sample = *std::move(sample);
    } else {
      read.status = sample.status();
    }
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
