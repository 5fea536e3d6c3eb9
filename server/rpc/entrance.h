#ifndef C3PO_SERVER_RPC_ENTRANCE_H_
#define C3PO_SERVER_RPC_ENTRANCE_H_

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/admission/access_control.h"
#include "server/admission/rate_limiter.h"
#include "server/metrics/metrics.h"

namespace c3po {

// "ipv4:10.0.0.7" of "ipv4:10.0.0.7:51002": one machine is one caller.
std::string AddressOfPeer(const std::string& peer);

// A call as its transport knows it before anything of it is read.
struct CallOrigin {
  std::string peer;              // The address, as gRPC writes it: "ipv4:10.0.0.7:51002".
  std::string certificate_name;  // The common name of the client's certificate, which was verified; empty: it has none.
  std::string authorization;     // The value of that header.
  std::string traceparent, tracestate;           // Likewise: W3C Trace Context. Empty: none, or several traceparents.
  absl::Time deadline = absl::InfiniteFuture();  // By the steady clock.
};

// What every call passes before anything of it is read: is the server open, who calls, may they call this method, and
// have they calls left? Health checks and reflection do not pass here. Thread-safe.
class Entrance {
 public:
  enum class State { kLoading, kOpen, kDraining };

  // A call that was let in.
  struct Admission {
    Caller caller;
    std::shared_ptr<RateLimiter::Call> call;  // Hold it for as long as the call runs.
  };

  // `access` null: there are no tokens, and everyone may call every method. `metrics` may be null, and outlives it.
  Entrance(std::unique_ptr<AccessControl> access, const RateLimits& limits, Metrics* metrics)
      : access_(std::move(access)), rates_(RateLimiter::Make(limits, metrics)) {}

  void Set(State state) { state_.store(state); }
  State state() const { return state_.load(); }
  // Whether callers have roles.
  bool guarded() const { return access_ != nullptr; }

  // Who calls: the token's name; without tokens, the common name of the client's certificate, or its address without
  // the port, with the role kReferences and every collection. Also of calls that are not let in, where it is known, in
  // `name`. Unavailable: loading, or draining. Unauthenticated: see AccessControl. PermissionDenied: the caller's role
  // does not reach to `rpc`. ResourceExhausted: see RateLimiter::Admit.
  absl::StatusOr<Admission> Admit(const CallOrigin& origin, Metrics::Rpc rpc, std::string& name);

 private:
  const std::unique_ptr<AccessControl> access_;
  const std::shared_ptr<RateLimiter> rates_;
  std::atomic<State> state_{State::kLoading};
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_ENTRANCE_H_
