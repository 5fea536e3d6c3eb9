#ifndef C3PO_CLIENT_CLI_SAMPLE_FILE_H_
#define C3PO_CLIENT_CLI_SAMPLE_FILE_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <fstream>
#include <istream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "c3po/v1/reference.pb.h"

namespace c3po {

// One line of a sample file.
struct SampleLine {
  uint64_t number = 0;  // Counted from 1.
  absl::Status status;  // InvalidArgument: why the line is malformed.
  v1::ReferenceSample sample;
  std::vector<std::string> unread;  // Keys of a well-formed line that are ignored (ParseSampleLine).
};

// Reads one sample per line, as ParseSampleLine does; blank lines are passed over. Whether a sample makes sense (an
// empty prompt, choices without the answer) is the server's to judge. Used by one thread.
class SampleFile {
 public:
  // "-" is stdin. NotFound when the file cannot be opened.
  static absl::StatusOr<SampleFile> Open(const std::string& path);

  // The next line that is not blank; nothing at the end. DataLoss when the file cannot be read on.
  absl::StatusOr<std::optional<SampleLine>> Next();

  // How many lines of a regular file are not blank; 0 when that is not known in advance.
  static uint64_t CountLines(const std::string& path);

  // For a CLI11 option that names such a file: "-" or a file that can be read, else a usage error.
  static CLI::Validator IsReadable();

 private:
  SampleFile() = default;

  std::string path_;
  std::unique_ptr<std::ifstream> file_;  // Null: stdin.
  uint64_t number_ = 0;
};

// Counts malformed lines and tells the first of them on stderr ("FILE:17: why").
class MalformedLines {
 public:
  explicit MalformedLines(std::string path) : path_(std::move(path)) {}
  void Report(uint64_t line, const std::string& why);
  uint64_t count() const { return count_; }
  // With `strict`, DataLoss when there were any.
  absl::Status Outcome(bool strict) const;

 private:
  const std::string path_;
  uint64_t count_ = 0;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_SAMPLE_FILE_H_
