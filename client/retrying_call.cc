#include "client/retrying_call.h"

#include <chrono>
#include <optional>

#include "absl/strings/str_cat.h"
#include "client/error_details.h"

namespace c3po {
namespace {

absl::Status WithAttempts(const absl::Status& status, int attempts, absl::string_view why_no_more) {
  if (attempts == 1 && why_no_more.empty()) return status;
  const std::string count = attempts == 1 ? "1 attempt" : absl::StrCat(attempts, " attempts");
  return absl::Status(status.code(), absl::StrCat(status.message(), " (after ", count, why_no_more, ")"));
}

}  // namespace

void SetDeadline(absl::Duration remaining, grpc::ClientContext* context) {
  if (remaining > absl::Hours(24 * 365)) return;  // Also keeps the sum below from overflowing.
  context->set_deadline(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(remaining));
}

RetryingCall::RetryingCall(const ClientOptions& options)
    : policy_(options.retry),
      authorization_(options.token.empty() ? "" : absl::StrCat("Bearer ", options.token)),
      clock_(options.clock != nullptr ? *options.clock : RetryClock::System()) {}

double RetryingCall::DrawUniform() {
  absl::MutexLock lock(&mu_);
  return absl::Uniform(random_, 0.0, 1.0);
}

absl::Status RetryingCall::Run(const CallOptions& options,
                               absl::FunctionRef<grpc::Status(grpc::ClientContext*, bool*)> attempt) {
  const absl::Time deadline = clock_.Now() + options.timeout;
  RetryPolicy policy = policy_;
  if (options.attempts_max > 0) policy.attempts_max = options.attempts_max;
  for (int attempts = 1;; ++attempts) {
    if (options.cancellation != nullptr && options.cancellation->cancelled()) {
      return absl::CancelledError("cancelled by the caller");
    }
    grpc::ClientContext context;
    SetDeadline(deadline - clock_.Now(), &context);
    if (!authorization_.empty()) context.AddMetadata("authorization", authorization_);
    Cancellation::Attachment attachment(options.cancellation, &context);
    bool received = false;
    const grpc::Status status = attempt(&context, &received);
    if (status.ok()) return absl::OkStatus();
    const absl::Status folded = FoldStatus(status);
    const ServerAdvice advice = ReadServerAdvice(context, status);
    if (options.advice != nullptr) *options.advice = advice;
    if (received) return folded;
    const std::optional<absl::Duration> pause =
        PauseBeforeRetry(policy, attempts, status.error_code(), advice, DrawUniform());
    if (!pause) return WithAttempts(folded, attempts, "");
    if (clock_.Now() + *pause >= deadline) {
      return WithAttempts(folded, attempts, "; the next would start past the deadline");
    }
    clock_.Sleep(*pause, options.cancellation);
  }
}

}  // namespace c3po
