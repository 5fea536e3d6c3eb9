#include "server/process/limited_child.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/steady_time.h"

namespace c3po {
namespace {

constexpr int kStandardDescriptors = 3;

// Closes what it holds.
class Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  int number() const { return number_; }
  int Release() { return std::exchange(number_, -1); }

 private:
  int number_;
};

// As `number`, but above the standard ones, which the child's are copied onto. -1: none is left.
int AboveStandard(int number) {
  if (number < 0 || number >= kStandardDescriptors) return number;
  const Descriptor low(number);
  return fcntl(number, F_DUPFD_CLOEXEC, kStandardDescriptors);
}

struct Pipe {
  Descriptor read, write;
};

absl::StatusOr<Pipe> MakePipe() {
  std::array<int, 2> ends = {-1, -1};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "a pipe");
  Pipe pipe{Descriptor(AboveStandard(ends[0])), Descriptor(AboveStandard(ends[1]))};
  if (pipe.read.number() < 0 || pipe.write.number() < 0) return absl::ResourceExhaustedError("a pipe: no descriptor");
  return pipe;
}

// All that the child reads between vfork and exec, made before: it may call nothing that allocates or locks there.
struct Launch {
  const char* program;
  char* const* arguments;
  char* const* environment;
  int input, output, null;
  pid_t parent;
  rlim_t memory_bytes, descriptors_max;
  int descriptors_end;
  int error = 0;  // errno of what failed, written by the child: it shares this memory.
};

void Limit(decltype(RLIMIT_AS) resource, rlim_t amount) {
  struct rlimit limit = {amount, amount};
  setrlimit(resource, &limit);
}

// The child's part. All signals are blocked when it begins.
[[noreturn]] __attribute__((noinline)) void BecomeProgram(Launch* launch) {
  struct sigaction standard = {};
  standard.sa_handler = SIG_DFL;
  // Its table of handlers is its own; one of this process's would run on this process's memory.
  for (int number = 1; number < NSIG; ++number) sigaction(number, &standard, nullptr);
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != launch->parent) _exit(127);  // It ended before the line above.
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (chdir("/") != 0 || dup2(launch->input, 0) < 0 || dup2(launch->output, 1) < 0 || dup2(launch->null, 2) < 0) {
    launch->error = errno;
    _exit(127);
  }
  if (syscall(SYS_close_range, kStandardDescriptors, ~0U, CLOSE_RANGE_CLOEXEC) != 0) {  // Kernels before 5.11.
    for (int number = kStandardDescriptors; number < launch->descriptors_end; ++number) close(number);
  }
  Limit(RLIMIT_AS, launch->memory_bytes);
  Limit(RLIMIT_CORE, 0);
  Limit(RLIMIT_FSIZE, 0);
  Limit(RLIMIT_NPROC, 0);
  Limit(RLIMIT_NOFILE, launch->descriptors_max);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execve(launch->program, launch->arguments, launch->environment);
  launch->error = errno;
  _exit(127);
}

// The process, or -1 with errno. In a function of its own, as vfork's child goes on with this stack frame.
__attribute__((noinline)) pid_t StartProgram(Launch* launch) {
  const pid_t pid = vfork();
  if (pid == 0) BecomeProgram(launch);
  return pid;
}

std::vector<char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (const std::string& text : texts) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// Until `descriptor` is ready. DeadlineExceeded: not by then.
absl::Status Await(int descriptor, short events, absl::Time deadline) {
  while (true) {
    const int64_t left = absl::ToInt64Milliseconds(absl::Ceil(deadline - SteadyNow(), absl::Milliseconds(1)));
    struct pollfd polled = {descriptor, events, 0};
    const int ready = poll(&polled, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 60000)));
    if (ready > 0) return absl::OkStatus();
    if (ready == 0 && SteadyNow() >= deadline) return absl::DeadlineExceededError("it took too long");
    if (ready < 0 && errno != EINTR && errno != EAGAIN) return absl::ErrnoToStatus(errno, "poll");
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<LimitedChild>> LimitedChild::Start(const Options& options) {
  const std::string& program = options.arguments.front();
  const auto failed = [&program](const absl::Status& status) {
    return absl::Status(status.code(), absl::StrCat(program, ": ", status.message()));
  };
  absl::StatusOr<Pipe> requests = MakePipe(), replies = MakePipe();
  if (!requests.ok()) return failed(requests.status());
  if (!replies.ok()) return failed(replies.status());
  const Descriptor null(AboveStandard(open("/dev/null", O_WRONLY | O_CLOEXEC)));
  if (null.number() < 0) return failed(absl::ErrnoToStatus(errno, "/dev/null"));
  fcntl(requests->write.number(), F_SETFL, O_NONBLOCK);
  fcntl(replies->read.number(), F_SETFL, O_NONBLOCK);
  std::vector<char*> arguments = Pointers(options.arguments), environment = Pointers(options.environment);
  Launch launch = {program.c_str(),
                   arguments.data(),
                   environment.data(),
                   requests->read.number(),
                   replies->write.number(),
                   null.number(),
                   getpid(),
                   static_cast<rlim_t>(options.memory_bytes),
                   static_cast<rlim_t>(options.descriptors_max),
                   static_cast<int>(std::clamp<int64_t>(sysconf(_SC_OPEN_MAX), 1024, 1 << 20))};
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const pid_t pid = StartProgram(&launch);
  const int error = errno;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) return failed(absl::ResourceExhaustedError(absl::ErrnoToStatus(error, "no process").message()));
  auto child = std::unique_ptr<LimitedChild>(new LimitedChild(pid, requests->write.Release(), replies->read.Release()));
  if (launch.error != 0) return failed(absl::ErrnoToStatus(launch.error, "cannot be run"));  // And waits for it.
  return child;
}

LimitedChild::~LimitedChild() {
  End();
  close(requests_);
  close(replies_);
}

const std::string& LimitedChild::End() {
  if (!ending_.empty()) return ending_;
  // Its own group, unless it ended before it had one.
  kill(-pid_, SIGKILL);
  kill(pid_, SIGKILL);
  int status = 0;
  pid_t waited;
  do {
    waited = waitpid(pid_, &status, 0);
  } while (waited < 0 && errno == EINTR);
  ending_ = waited < 0            ? "unknown"
            : WIFSIGNALED(status) ? absl::StrCat("signal ", WTERMSIG(status))
                                  : absl::StrCat("exit code ", WEXITSTATUS(status));
  return ending_;
}

bool LimitedChild::HasEnded() const {
  if (!ending_.empty()) return true;
  siginfo_t info = {};
  if (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid != 0) return true;
  struct pollfd polled = {replies_, POLLIN, 0};
  return poll(&polled, 1, 0) > 0 && (polled.revents & (POLLHUP | POLLERR)) != 0;
}

absl::Status LimitedChild::Write(absl::string_view bytes, absl::Time deadline) {
  while (!bytes.empty()) {
    // SIGPIPE, were it not ignored, would end this process: it is held back while writing.
    sigset_t pipe, before;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, &before);
    const ssize_t taken = write(requests_, bytes.data(), bytes.size());
    const int error = errno;
    if (taken < 0 && error == EPIPE && sigismember(&before, SIGPIPE) == 0) {
      const struct timespec now = {};
      sigtimedwait(&pipe, nullptr, &now);
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (taken > 0) {
      bytes.remove_prefix(static_cast<size_t>(taken));
    } else if (error == EAGAIN) {
      const absl::Status ready = Await(requests_, POLLOUT, deadline);
      if (!ready.ok()) return ready;
    } else if (error != EINTR) {
      return absl::UnavailableError("it has ended");
    }
  }
  return absl::OkStatus();
}

absl::Status LimitedChild::Read(size_t bytes, absl::Time deadline, std::string* out) {
  out->clear();
  std::array<char, 1 << 16> part;
  while (out->size() < bytes) {
    const absl::Status ready = Await(replies_, POLLIN, deadline);
    if (!ready.ok()) return ready;
    const ssize_t taken = read(replies_, part.data(), std::min(part.size(), bytes - out->size()));
    if (taken > 0) {
      out->append(part.data(), static_cast<size_t>(taken));
    } else if (taken == 0) {
      return absl::UnavailableError("it has ended");
    } else if (errno != EINTR && errno != EAGAIN) {
      return absl::UnavailableError("it has ended");
    }
  }
  return absl::OkStatus();
}

}  // namespace c3po
