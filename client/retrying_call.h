#ifndef C3PO_CLIENT_RETRYING_CALL_H_
#define C3PO_CLIENT_RETRYING_CALL_H_

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/random/random.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/c3po_client.h"
#include "client/retry.h"

namespace c3po {

// Runs the attempts of calls under one policy. Thread-safe; internal to the client library.
class RetryingCall {
 public:
  explicit RetryingCall(const ClientOptions& options);

  // Runs `attempt` with a context that carries the deadline and the cancellation, and again after a pause as long as
  // the policy says so. `attempt` sets its second argument to true once a message of a stream has been received; after
  // that its error is final.
  absl::Status Run(const CallOptions& options, absl::FunctionRef<grpc::Status(grpc::ClientContext*, bool*)> attempt);

  RetryClock& clock() { return clock_; }

 private:
  double DrawUniform();

  const RetryPolicy policy_;
  const std::string authorization_;  // The header's value; empty: none.
  RetryClock& clock_;
  absl::Mutex mu_;
  absl::BitGen random_ ABSL_GUARDED_BY(mu_);
};

// Sets the deadline of one attempt; none when `remaining` is longer than a year.
void SetDeadline(absl::Duration remaining, grpc::ClientContext* context);

}  // namespace c3po

#endif  // C3PO_CLIENT_RETRYING_CALL_H_
