#include "server/rpc/health_monitor.h"

#include <utility>

#include "index/base/device_failure.h"
#include "server/metrics/logging.h"

namespace c3po {
namespace {

constexpr absl::Duration kLookEvery = absl::Milliseconds(100);

}  // namespace

HealthMonitor::HealthMonitor(GrpcServer* server, std::function<absl::Duration()> stalled_for, absl::Duration stall_max,
                             std::function<bool()> store_lost, std::function<void()> device_failed)
    : server_(server),
      stalled_for_(std::move(stalled_for)),
      stall_max_(stall_max),
      store_lost_(std::move(store_lost)),
      device_failed_(std::move(device_failed)) {
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
  const absl::Status device = DeviceFailure();
  const bool serving = !stalled && !draining_ && !store_lost_() && device.ok();
  if (serving != serving_.exchange(serving)) server_->SetServing(serving);
  if (device.ok() || std::exchange(told_failure_, true)) return;
  Log(LogLevel::kError, "device_failed", "", {{"reason", device.message()}});
  device_failed_();
}

}  // namespace c3po
