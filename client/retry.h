#ifndef C3PO_CLIENT_RETRY_H_
#define C3PO_CLIENT_RETRY_H_

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <optional>

#include "absl/time/time.h"
#include "client/cancellation.h"

namespace c3po {

// When a failed call is tried again. Only UNAVAILABLE and RESOURCE_EXHAUSTED are, and never once a message of the
// answer's stream has been received.
struct RetryPolicy {
  int attempts_max = 4;  // Calls in all, the first included; at least 1.
  absl::Duration initial_backoff = absl::Milliseconds(200);
  absl::Duration backoff_max = absl::Seconds(5);
  double multiplier = 2.0;
  double jitter = 0.2;  // A backoff is drawn evenly from [1 - jitter, 1 + jitter] times its nominal value.
  // A server that asks for a longer pause than this gets none: its error is returned at once.
  absl::Duration server_delay_max = absl::Seconds(60);
};

// Time as the retry loop sees it, so that a test can watch the pauses without living through them. Thread-safe.
class RetryClock {
 public:
  virtual ~RetryClock() = default;
  virtual absl::Time Now() = 0;
  // Returns early when `cancellation` (may be null) is cancelled.
  virtual void Sleep(absl::Duration duration, Cancellation* cancellation) = 0;

  // The system's clock; lives forever.
  static RetryClock& System();
};

// What a failed call's server said about trying again.
struct ServerAdvice {
  bool never = false;                         // `grpc-retry-pushback-ms` negative or not a number (gRFC A6)
  std::optional<absl::Duration> pushback;     // `grpc-retry-pushback-ms`
  std::optional<absl::Duration> retry_delay;  // google.rpc.RetryInfo
};

// Reads the trailing metadata of a call that has finished, and the details of its status.
ServerAdvice ReadServerAdvice(const grpc::ClientContext& context, const grpc::Status& status);

// The pause before the attempt after `attempts_made` (>= 1), or nothing when the call is not tried again. The server's
// pushback is taken as it is; its RetryInfo is a lower bound of the backoff
//   min(backoff_max, initial_backoff * multiplier^(attempts_made - 1)) * (1 + jitter * (2 * uniform - 1)),
// with `uniform` in [0, 1).
std::optional<absl::Duration> PauseBeforeRetry(const RetryPolicy& policy, int attempts_made, grpc::StatusCode code,
                                               const ServerAdvice& advice, double uniform);

}  // namespace c3po

#endif  // C3PO_CLIENT_RETRY_H_
