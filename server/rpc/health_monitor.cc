#include "server/rpc/health_monitor.h"

#include <utility>

#include "server/metrics/logging.h"

namespace c3po {
namespace {

constexpr absl::Duration kLookEvery = absl::Milliseconds(100);

}  // namespace

HealthMonitor::HealthMonitor(GrpcServer* server, std::function<absl::Duration()> stalled_for, absl::Duration stall_max)
    : server_(server), stalled_for_(std::move(stalled_for)), stall_max_(stall_max), thread_([this] { Run(); }) {
  const absl::MutexLock lock(&mu_);
  Look();
}

HealthMonitor::~HealthMonitor() {
  {
    const absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void HealthMonitor::Drain() {
  const absl::MutexLock lock(&mu_);
  draining_ = true;
  Look();
}

void HealthMonitor::Look() {
  const absl::Duration stalled_for = stalled_for_();
  const bool stalled = stalled_for > stall_max_;
  if (stalled != stalled_.exchange(stalled)) {
    Log(stalled ? LogLevel::kError : LogLevel::kInfo, stalled ? "engine_stalled" : "engine_recovered", "",
        {{"seconds_without_a_step", absl::ToDoubleSeconds(stalled_for)}});
  }
  const bool serving = !stalled && !draining_;
  if (serving != serving_.exchange(serving)) server_->SetServing(serving);
}

void HealthMonitor::Run() {
  const absl::MutexLock lock(&mu_);
  const auto stopping = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_; };
  while (!mu_.AwaitWithTimeout(absl::Condition(&stopping), kLookEvery)) Look();
}

}  // namespace c3po
