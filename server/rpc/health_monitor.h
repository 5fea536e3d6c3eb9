#ifndef C3PO_SERVER_RPC_HEALTH_MONITOR_H_
#define C3PO_SERVER_RPC_HEALTH_MONITOR_H_

#include <atomic>
#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/process/periodic.h"
#include "server/rpc/grpc_server.h"

namespace c3po {

// Sets the server's health by its progress: SERVING from the start of the monitor on, NOT_SERVING while the engine has
// had work for longer than a limit without ending a step, or the store is lost, and for good once draining or once the
// device that computes has failed (index/base/device_failure.h), which `device_failed` is told once. An idle
// engine is healthy, and so is one with a long prompt, which it reads in many steps. Looks every tenth of a second on a
// thread of its own. Thread-safe.
class HealthMonitor {
 public:
  // `stalled_for` says for how long there has been work without a step that ended; called from the monitor's thread.
  // `store_lost` says whether the store's file is gone, `device_failed` is to end the process; likewise. `server` is
  // not owned, outlives the monitor, and is open.
  HealthMonitor(GrpcServer* server, std::function<absl::Duration()> stalled_for, absl::Duration stall_max,
                std::function<bool()> store_lost, std::function<void()> device_failed);

  bool serving() const { return serving_.load(); }
  bool stalled() const { return stalled_.load(); }
  // NOT_SERVING from now on. Returns when health says so.
  void Drain();

 private:
  void Look() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  GrpcServer* const server_;
  const std::function<absl::Duration()> stalled_for_;
  const absl::Duration stall_max_;
  const std::function<bool()> store_lost_;
  const std::function<void()> device_failed_;
  absl::Mutex mu_;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool told_failure_ ABSL_GUARDED_BY(mu_) = false;
  std::atomic<bool> serving_{false}, stalled_{false};
  std::unique_ptr<Periodic> looks_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_HEALTH_MONITOR_H_
