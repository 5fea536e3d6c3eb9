#include "server/rpc/call_context.h"

#include <grpcpp/security/auth_context.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <random>

#include "absl/strings/str_format.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "index/base/utf8.h"
#include "index/store/reference_store.h"
#include "server/rpc/call_span.h"
#include "server/rpc/grpc_status.h"

namespace c3po {
namespace {

constexpr size_t kRequestIdBytesMax = 128;

// gRPC keeps deadlines by the steady clock and tells them by the wall clock of the moment. Its "no deadline" is the end
// of its clock.
absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const absl::Duration left = absl::FromChrono(context.deadline()) - absl::FromChrono(std::chrono::system_clock::now());
  return left > absl::Hours(24 * 365) ? absl::InfiniteFuture() : SteadyNow() + left;
}

std::string HeaderOf(const grpc::CallbackServerContext& context, const char* name) {
  const auto found = context.client_metadata().find(name);
  if (found == context.client_metadata().end()) return {};
  return {found->second.data(), found->second.size()};
}

// Empty where there are several.
std::string SingleHeaderOf(const grpc::CallbackServerContext& context, const char* name) {
  return context.client_metadata().count(name) == 1 ? HeaderOf(context, name) : std::string();
}

// A list that may come in several headers.
std::string JoinedHeadersOf(const grpc::CallbackServerContext& context, const char* name) {
  const auto [first, last] = context.client_metadata().equal_range(name);
  std::string joined;
  for (auto line = first; line != last; ++line) {
    if (!joined.empty()) joined += ',';
    joined.append(line->second.data(), line->second.size());
  }
  return joined;
}

std::string CertificateNameOf(const grpc::CallbackServerContext& context) {
  const auto authentication = context.auth_context();
  if (authentication == nullptr || !authentication->IsPeerAuthenticated()) return {};
  const std::vector<grpc::string_ref> names = authentication->FindPropertyValues("x509_common_name");
  return names.empty() ? std::string() : std::string(names.front().data(), names.front().size());
}

}  // namespace

CallOrigin OriginOf(const grpc::CallbackServerContext& context) {
  return {context.peer(),
          CertificateNameOf(context),
          HeaderOf(context, "authorization"),
          SingleHeaderOf(context, "traceparent"),
          JoinedHeadersOf(context, "tracestate"),
          DeadlineOf(context)};
}

absl::Status RevokedError() {
  return absl::UnauthenticatedError("the token was revoked, or what it allows was changed, while the call ran");
}

uint64_t DrawSeed() {
  static std::mutex mutex;
  static std::mt19937_64 generator([] {
    std::random_device device;
    return (uint64_t{device()} << 32) | device();
  }());
  const std::lock_guard<std::mutex> lock(mutex);
  return generator();
}

CallState::CallState(grpc::CallbackServerContext* context, const ServiceParts& parts, Metrics::Rpc rpc)
    : CallState(OriginOf(*context), parts, rpc) {
  context_ = context;
}

CallState::CallState(CallOrigin origin, const ServiceParts& parts, Metrics::Rpc rpc)
    : origin_(std::move(origin)),
      admission_(parts.entrance->Admit(origin_, rpc, record_.caller)),
      metrics_(parts.metrics),
      log_(parts.call_log),
      store_(parts.store),
      administers_(admission_.ok() && (!parts.entrance->guarded() || admission_->caller.role == Role::kAdminister)),
      may_use_oracle_(administers_ && (parts.entrance->guarded() || parts.pipeline_parts.allow_oracle)),
      arrival_(SteadyNow()),
      cancelled_(std::make_shared<std::atomic<bool>>(false)),
      message_bytes_(parts.message_bytes) {
  record_.rpc = rpc;
  record_.peer = origin_.peer;
  if (parts.tracer != nullptr) (void)CatchEscapedIn(ThreadKind::kTransport, [&] { BeginTrace(*parts.tracer); });
  if (!admission_.ok() || grant() == nullptr) return;
  hold_ = grant()->Watch([this] {
    revoked_.store(true);
    Cancel();
  });
}

void CallState::BeginTrace(const Tracer& tracer) {
  const std::optional<TraceContext> parent = ParseTraceContext(origin_.traceparent, origin_.tracestate);
  trace_ = BeginCallSpan(tracer, parent, record_.rpc, record_.peer, arrival_);
  if (trace_ != nullptr) {
    record_.trace_id = TraceHex(trace_->trace_id());
    record_.span_id = TraceHex(trace_->span_id());
  } else if (parent) {  // Its caller's log may have it.
    record_.trace_id = TraceHex(parent->trace_id);
  }
}

CallState::~CallState() {
  if (message_bytes_ != nullptr && bytes_counted_ > 0) message_bytes_->Give(caller(), bytes_counted_);
}

absl::Status CallState::HoldBytes(size_t bytes) {
  if (message_bytes_ == nullptr) return absl::OkStatus();
  const MutexLock lock(bytes_mutex_);
  const int64_t held = bytes_ + static_cast<int64_t>(bytes);
  const int64_t more = std::max<int64_t>(0, held - kFreeBytes) - bytes_counted_;
  if (more > 0) {
    C3PO_RETURN_IF_ERROR(message_bytes_->Take(caller(), more));
    bytes_counted_ += more;
  }
  bytes_ = held;
  return absl::OkStatus();
}

void CallState::ReleaseBytes(size_t bytes) {
  if (message_bytes_ == nullptr) return;
  const MutexLock lock(bytes_mutex_);
  bytes_ -= std::min(bytes_, static_cast<int64_t>(bytes));
  const int64_t less = bytes_counted_ - std::max<int64_t>(0, bytes_ - kFreeBytes);
  if (less <= 0) return;
  message_bytes_->Give(caller(), less);
  bytes_counted_ -= less;
}

void CallState::Audit(absl::string_view action, std::initializer_list<LogField> what) const {
  CallLog::Audit(record_, action, store_->generation(), what);
}

absl::Status CallState::CheckCancelled() const {
  return cancelled_->load() ? absl::CancelledError("the client cancelled the request") : absl::OkStatus();
}

CallContext CallState::Context(const std::string& request_id) {
  record_.request_id = request_id.empty() ? absl::StrFormat("%016x", DrawSeed())
                                          : std::string(Utf8Prefix(request_id, kRequestIdBytesMax));
  CallContext result;
  result.request_id = record_.request_id;
  result.arrival = arrival_;
  result.deadline = origin_.deadline;
  result.cancelled = cancelled_;
  result.caller = record_.caller;
  result.may_use_oracle = may_use_oracle_;
  result.hold_bytes = [this](size_t bytes) {
    return HoldBytes(bytes);
  };  // The call outlives the pipeline's work on it.
  result.rates = admission_.ok() ? admission_->call : nullptr;
  result.trace = trace_;
  return result;
}

void CallState::NoteReport(const OptimizationReport& report) {
  record_.collection = report.settings.collection;
  record_.gate = TermOf(report.gate).name;
}

void CallState::NoteUsage(const Usage& usage, int64_t cost) {
  if (admission_.ok()) admission_->call->Used(cost);
  if (usage.prompt_tokens == 0) return;  // The call ended before they were counted.
  record_.prompt_tokens = usage.prompt_tokens;
  record_.completion_tokens = usage.completion_tokens;
}

void CallState::Cancel() {
  int64_t never = 0;
  cancelled_at_nanoseconds_.compare_exchange_strong(never, absl::ToUnixNanos(SteadyNow()));
  cancelled_->store(true);
}

void CallState::Released() {
  if (released_.exchange(true) || metrics_ == nullptr) return;
  const int64_t cancelled_at = cancelled_at_nanoseconds_.load();
  if (cancelled_at > 0)
    metrics_->ObserveCancelToRelease(static_cast<double>(absl::ToUnixNanos(SteadyNow()) - cancelled_at) * 1e-9);
}

absl::Status CallState::Ended(const absl::Status& with) noexcept {
  Released();
  absl::Status status = with;
  if (revoked_.load() && absl::IsCancelled(with))
    (void)CatchEscapedIn(ThreadKind::kTransport, [&] { status = RevokedError(); });
  if (metrics_ != nullptr) metrics_->CountRpc(record_.rpc, status.code());
  const auto log = [&] { log_->Ended(record_, status, SteadyNow() - arrival_); };
  (void)CatchEscapedIn(ThreadKind::kTransport, log);
  EndCallSpan(trace_.get(), record_.rpc, status);
  return status;
}

grpc::Status CallState::End(const absl::Status& with) noexcept {
  const absl::Status status = Ended(with);
  grpc::Status result(static_cast<grpc::StatusCode>(status.code()), "");
  const auto with_details = [&] { result = ToGrpcStatus(status, context_); };
  (void)CatchEscapedIn(ThreadKind::kTransport, with_details);
  return result;
}

}  // namespace c3po
