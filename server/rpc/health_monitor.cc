#include "server/rpc/health_monitor.h"

#include <utility>

#include "server/metrics/logging.h"

namespace c3po {
namespace {

constexpr absl::Duration kLookEvery = absl::Milliseconds(100);

}  // namespace

HealthMonitor::HealthMonitor(GrpcServer* server, std::function<absl::Duration()> stalled_for, absl::Duration stall_max,
                             std::function<bool()> store_lost)
    : server_(server), stalled_for_(std::move(stalled_for)), stall_max_(stall_max), store_lost_(std::move(store_lost)) {
  const auto look = [this] {
    const absl::MutexLock lock(&mu_);
    Look();
  };
  look();
  looks_ = std::make_unique<Periodic>(kLookEvery, look);
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
  const bool serving = !stalled && !draining_ && !store_lost_();
  if (serving != serving_.exchange(serving)) server_->SetServing(serving);
}

}  // namespace c3po
