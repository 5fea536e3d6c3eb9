#include "server/rpc/file_watch.h"

#include <utility>

namespace c3po {

FileWatch::FileWatch(absl::Duration every, std::function<void()> look)
    : every_(every), look_(std::move(look)), thread_([this] { Run(); }) {}

FileWatch::~FileWatch() {
  {
    const absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void FileWatch::Run() {
  const auto stopping = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_; };
  while (true) {
    {
      const absl::MutexLock lock(&mu_);
      if (mu_.AwaitWithTimeout(absl::Condition(&stopping), every_)) return;
    }
    look_();
  }
}

}  // namespace c3po
