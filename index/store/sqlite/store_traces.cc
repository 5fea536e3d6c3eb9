#include "index/store/sqlite/store_traces.h"

#include <filesystem>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

// The first trace; empty: there is none.
std::string TraceOf(const std::string& path, const std::vector<std::string>& folders) {
  std::error_code error;
  const std::string log = std::filesystem::weakly_canonical(path, error).string() + "-wal";  // SQLite follows links.
  if (const auto bytes = std::filesystem::file_size(log, error); !error && bytes > 0) return log;
  for (const std::string& folder : folders) {
    const std::filesystem::directory_iterator entry(folder, error);
    if (!error && entry != std::filesystem::directory_iterator()) return folder;
  }
  return "";
}

}  // namespace

absl::StatusOr<std::string> LookForCutStore(const std::string& path, const std::vector<std::string>& trace_folders) {
  std::error_code error;
  const bool exists = std::filesystem::is_regular_file(path, error);
  if (exists && (std::filesystem::file_size(path, error) > 0 || error)) return std::string();
  const std::string trace = TraceOf(path, trace_folders);
  if (!exists) {
    return trace.empty() ? "" : absl::StrCat("there was no file, and ", trace, " is left of a store: it begins empty");
  }
  if (!trace.empty()) {
    return absl::DataLossError(absl::StrCat("store ", path, ": has 0 bytes, but ", trace,
                                            " is left of a store: the file was cut. Restore it from a backup; to begin "
                                            "with an empty store, remove both"));
  }
  return "the file had 0 bytes: if it held a store, it was cut. It begins empty";
}

}  // namespace c3po
