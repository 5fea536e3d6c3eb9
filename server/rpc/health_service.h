#ifndef C3PO_SERVER_RPC_HEALTH_SERVICE_H_
#define C3PO_SERVER_RPC_HEALTH_SERVICE_H_

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/metrics/metrics.h"

namespace c3po {

struct WatchLimits {
  int all_max = 1024;        // Watch streams at once
  int per_address_max = 64;  // of these from one address
};

// grpc.health.v1 for a server and its services, which serve and cease to serve together; NOT_SERVING at first. In place
// of gRPC's own, whose Watch streams nothing bounds. A Watch beyond a limit ends with ResourceExhausted, reason RATE. A
// stream keeps the latest status only, however slowly its client reads. Thread-safe.
class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  // `services`: their full names; the server itself, "", is one of them always. `metrics` may be null. Both the metrics
  // and this outlive the gRPC server.
  HealthService(const std::vector<std::string>& services, const WatchLimits& limits, Metrics* metrics);

  void SetServing(bool serving);
  bool serving();
  // Ends every Watch with Unavailable, and each later one at once.
  void EndWatches();

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context, const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;
  class Watcher;

  Status StatusOf(bool known) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Why there is no place for one more.
  absl::Status CheckRoom(const std::string& address) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Leave(Watcher* watcher, const std::string& address);

  const std::set<std::string> services_;
  const WatchLimits limits_;
  Metrics* const metrics_;
  absl::Mutex mu_;
  bool serving_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  std::set<Watcher*> watchers_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, int> by_address_ ABSL_GUARDED_BY(mu_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_HEALTH_SERVICE_H_
