#include "client/cli/interrupt.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>

#include "absl/time/time.h"
#include "client/cli/exit_code.h"
#include "index/base/steady_time.h"

namespace c3po {
namespace {

constexpr char kSignal = 's';
constexpr char kStop = 'q';
// timeout(1), and a shell that ends a pipeline, signal a process and then its group: one wish, not two.
constexpr absl::Duration kOneWish = absl::Milliseconds(500);

int write_end = -1;  // The handler can reach nothing but globals.

// Only write(2) is allowed here, so the work is handed to a thread.
void OnSignal(int) {
  const int saved_errno = errno;
  [[maybe_unused]] const ssize_t written = write(write_end, &kSignal, 1);
  errno = saved_errno;
}

void SetHandler(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

InterruptWatcher::InterruptWatcher(Cancellation* cancellation) : cancellation_(cancellation) {
  int ends[2];
  // Without a pipe the default stays: a signal ends the process.
  if (pipe2(ends, O_CLOEXEC) != 0) return;
  read_end_ = ends[0];
  write_end = ends[1];
  thread_ = std::thread([this] { Watch(); });
  SetHandler(OnSignal);
}

InterruptWatcher::~InterruptWatcher() {
  if (!thread_.joinable()) return;
  SetHandler(SIG_DFL);
  [[maybe_unused]] const ssize_t written = write(write_end, &kStop, 1);
  thread_.join();
  close(write_end);
  close(read_end_);
}

void InterruptWatcher::Watch() {
  char what = 0;
  absl::Time last = absl::InfinitePast();
  while (true) {
    const ssize_t count = read(read_end_, &what, 1);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0 || what == kStop) return;
    const absl::Time now = SteadyNow();
    if (now - last < kOneWish) continue;
    last = now;
    const bool heard = cancellation_->calls_in_flight() > 0 || cancellation_->watched();
    if (cancellation_->cancelled() || !heard) {
      [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, "\n", 1);
      _exit(kExitCancelled);
    }
    cancellation_->Cancel();
  }
}

}  // namespace c3po
