#include "server/process/periodic.h"

#include <utility>

#include "index/base/escaped_exception.h"

namespace c3po {

Periodic::Periodic(absl::Duration every, std::function<void()> look)
    : every_(every), look_(std::move(look)), thread_([this] { Run(); }) {}

Periodic::~Periodic() {
  {
    const std::lock_guard<std::mutex> lock(mu_);
    ending_ = true;
  }
  ending_changed_.notify_one();
  thread_.join();
}

void Periodic::Run() {
  while (true) {
    {
      std::unique_lock<std::mutex> lock(mu_);
      if (ending_changed_.wait_for(lock, absl::ToChronoNanoseconds(every_), [this] { return ending_; })) return;
    }
    (void)CatchEscapedIn(ThreadKind::kPeriodic, look_);
  }
}

}  // namespace c3po
