#include "server/process/process_usage.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "index/base/status_macros.h"
#include "server/process/descriptor_limit.h"

namespace c3po {

absl::StatusOr<ProcessUsage> ParseStat(absl::string_view line, int64_t ticks_per_second, int64_t page_bytes) {
  const size_t command_end = line.rfind(')');
  if (command_end == absl::string_view::npos) return absl::InvalidArgumentError("/proc/self/stat: no command");
  // proc(5) numbers fields from 1; the first one after the command is 3.
  const std::vector<absl::string_view> fields =
      absl::StrSplit(line.substr(command_end + 1), absl::ByAnyChar(" \n"), absl::SkipEmpty());
  const auto field = [&fields](size_t number) -> absl::StatusOr<int64_t> {
    int64_t value = 0;
    if (fields.size() <= number - 3 || !absl::SimpleAtoi(fields[number - 3], &value)) {
      return absl::InvalidArgumentError(absl::StrCat("/proc/self/stat: field ", number, " is no number"));
    }
    return value;
  };
  ProcessUsage usage;
  C3PO_ASSIGN_OR_RETURN(const int64_t user, field(14));
  C3PO_ASSIGN_OR_RETURN(const int64_t system, field(15));
  C3PO_ASSIGN_OR_RETURN(usage.threads, field(20));
  C3PO_ASSIGN_OR_RETURN(usage.virtual_bytes, field(23));
  C3PO_ASSIGN_OR_RETURN(const int64_t resident_pages, field(24));
  usage.cpu_seconds = static_cast<double>(user + system) / static_cast<double>(ticks_per_second);
  usage.resident_bytes = resident_pages * page_bytes;
  return usage;
}

absl::StatusOr<ProcessUsage> ReadProcessUsage() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  if (!std::getline(file, line)) return absl::UnavailableError("/proc/self/stat: cannot be read");
  C3PO_ASSIGN_OR_RETURN(ProcessUsage usage, ParseStat(line, sysconf(_SC_CLK_TCK), sysconf(_SC_PAGESIZE)));
  file.close();
  std::error_code error;
  const std::filesystem::directory_iterator descriptors("/proc/self/fd", error);
  if (error) return absl::UnavailableError(absl::StrCat("/proc/self/fd: ", error.message()));
  for (auto entry = descriptors; entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (error) return absl::UnavailableError(absl::StrCat("/proc/self/fd: ", error.message()));
    ++usage.open_files;
  }
  usage.open_files_max = DescriptorLimit();
  return usage;
}

}  // namespace c3po
