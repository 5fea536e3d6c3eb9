#include "server/process/process_signals.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <initializer_list>
#include <utility>

#include "index/base/escaped_exception.h"

namespace c3po {
namespace {

sigset_t Waited() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  return signals;
}

}  // namespace

ProcessSignals::ProcessSignals(std::function<void()> before_exit) : before_exit_(std::move(before_exit)) {
  const sigset_t signals = Waited();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);  // A file-size limit is a full disk.
  thread_ = std::thread([this] { Run(); });
}

ProcessSignals::~ProcessSignals() {
  {
    const absl::MutexLock lock(&mu_);
    ending_ = true;
  }
  pthread_kill(thread_.native_handle(), SIGHUP);
  thread_.join();
}

void ProcessSignals::OnReload(std::function<void()> reload) {
  const absl::MutexLock lock(&reload_mu_);
  reload_ = std::move(reload);
}

void ProcessSignals::Serving() {
  const absl::MutexLock lock(&mu_);
  serving_ = true;
}

void ProcessSignals::AwaitStop() {
  const absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(&stopped_));
}

void ProcessSignals::Stop(int signal) {
  int code = 0;
  {
    const absl::MutexLock lock(&mu_);
    if (serving_ && !std::exchange(stopped_, true)) return;
    if (serving_) code = 128 + signal;
  }
  before_exit_();
  _exit(code);
}

void ProcessSignals::StopServing() {
  const absl::MutexLock lock(&mu_);
  stopped_ = true;
}

void ProcessSignals::Run() {
  const sigset_t signals = Waited();
  while (true) {
    int received = 0;
    if (sigwait(&signals, &received) != 0) continue;
    {
      const absl::MutexLock lock(&mu_);
      if (ending_) return;
    }
    if (received != SIGHUP) {
      Stop(received);
      continue;
    }
    const absl::MutexLock lock(&reload_mu_);
    if (reload_) (void)CatchEscapedIn(ThreadKind::kSignals, reload_);
  }
}

}  // namespace c3po
