#ifndef C3PO_SERVER_PROCESS_PROCESS_USAGE_H_
#define C3PO_SERVER_PROCESS_PROCESS_USAGE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// What the kernel counts about this process.
struct ProcessUsage {
  double cpu_seconds = 0;      // User and system, of all threads, since the start.
  int64_t resident_bytes = 0;  // Physical memory, shared libraries included.
  int64_t virtual_bytes = 0;
  int64_t threads = 0;
  int64_t open_files = 0;      // File descriptors, sockets among them.
  int64_t open_files_max = 0;  // The soft limit: beyond it accept() fails.
};

// Reads /proc/self and getrlimit; about 20 us. Thread-safe. Unavailable, naming the file: no /proc, or no descriptor
// left to open it with.
absl::StatusOr<ProcessUsage> ReadProcessUsage();

// The fields of one line of proc(5)'s /proc/PID/stat: cpu_seconds, threads, virtual_bytes and resident_bytes; the other
// two stay 0. The command in it may hold spaces and parentheses. ticks_per_second, page_bytes: of sysconf(3).
// InvalidArgument: not such a line.
absl::StatusOr<ProcessUsage> ParseStat(absl::string_view line, int64_t ticks_per_second, int64_t page_bytes);

}  // namespace c3po

#endif  // C3PO_SERVER_PROCESS_PROCESS_USAGE_H_
