#ifndef C3PO_SERVER_PROCESS_LIMITED_CHILD_H_
#define C3PO_SERVER_PROCESS_LIMITED_CHILD_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace c3po {

// A program that this process feeds and reads through two pipes, and that can do little else. It has no other
// descriptor of this process, no variable but those given, "/" as its folder, and no signal of this process's terminal
// (a process group of its own). It writes no file, dumps no core, gains no privilege, and starts no process unless it
// is root's. The kernel ends it when the thread that started it ends, hence with this process however that ends. What
// it says on standard error is dropped.
//
// The child is started by vfork: the memory of this process is neither copied nor marked for copying.
// Of one thread at a time, the one that called Start.
class LimitedChild {
 public:
  struct Options {
    std::vector<std::string> arguments;       // arguments[0]: the program's absolute path. No shell is asked.
    std::vector<std::string> environment;     // "NAME=value"
    int64_t memory_bytes = int64_t{1} << 30;  // Of address space; beyond, its allocations fail.
    int descriptors_max = 64;
  };

  // NotFound, PermissionDenied or another code of errno: the program cannot be run. ResourceExhausted: no process,
  // descriptor or memory for it. The message begins with the program's path.
  static absl::StatusOr<std::unique_ptr<LimitedChild>> Start(const Options& options);

  // Kills its process group, and waits for it to end.
  ~LimitedChild();
  LimitedChild(const LimitedChild&) = delete;
  LimitedChild& operator=(const LimitedChild&) = delete;

  // By the steady clock. DeadlineExceeded: it did not take, or write, all of it in time. Unavailable: it has ended; the
  // message says how, once End has been called.
  absl::Status Write(absl::string_view bytes, absl::Time deadline);
  absl::Status Read(size_t bytes, absl::Time deadline, std::string* out);

  // Whether it has ended, or has closed its end of the reply's pipe. Does not wait.
  bool HasEnded() const;
  // Kills what is left of it and says how it ended, as "signal 11" or "exit code 1". Further calls give the same.
  const std::string& End();
  pid_t pid() const { return pid_; }

 private:
  LimitedChild(pid_t pid, int requests, int replies) : pid_(pid), requests_(requests), replies_(replies) {}

  const pid_t pid_;
  const int requests_;  // Its standard input.
  const int replies_;   // Its standard output.
  std::string ending_;  // Not empty: it was waited for.
};

}  // namespace c3po

#endif  // C3PO_SERVER_PROCESS_LIMITED_CHILD_H_
