#ifndef C3PO_SERVER_RPC_ENTRANCE_H_
#define C3PO_SERVER_RPC_ENTRANCE_H_

#include <grpcpp/server_context.h>

#include <atomic>
#include <memory>

#include "absl/status/statusor.h"
#include "server/admission/access_control.h"
#include "server/metrics/metrics.h"

namespace c3po {

// What every call passes before anything of it is read: is the server open, who calls, and may they call this method?
// Health checks and reflection do not pass here. Thread-safe.
class Entrance {
 public:
  enum class State { kLoading, kOpen, kDraining };

  // `access` null: there are no tokens, and everyone may call every method.
  explicit Entrance(std::unique_ptr<AccessControl> access) : access_(std::move(access)) {}

  void Set(State state) { state_.store(state); }
  State state() const { return state_.load(); }
  // Whether callers have roles.
  bool guarded() const { return access_ != nullptr; }

  // Who calls: the token's name; without tokens, the common name of the client's certificate, or its address without
  // the port, with the role kReferences. Unavailable: loading, or draining. Unauthenticated: see AccessControl.
  // PermissionDenied: the caller's role does not reach to `rpc`.
  absl::StatusOr<Caller> Admit(const grpc::CallbackServerContext& context, Metrics::Rpc rpc) const;

 private:
  const std::unique_ptr<AccessControl> access_;
  std::atomic<State> state_{State::kLoading};
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_ENTRANCE_H_
