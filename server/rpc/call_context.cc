#include "server/rpc/call_context.h"

#include <mutex>
#include <random>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "server/metrics/logging.h"
#include "server/rpc/grpc_status.h"

namespace c3po {
namespace {

// gRPC's "no deadline" is the end of its clock.
absl::Time DeadlineOf(grpc::CallbackServerContext* context) {
  const absl::Time deadline = absl::FromChrono(context->deadline());
  return deadline - absl::Now() > absl::Hours(24 * 365) ? absl::InfiniteFuture() : deadline;
}

}  // namespace

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
    : context_(context),
      rpc_(rpc),
      caller_(parts.entrance->Admit(*context, rpc)),
      metrics_(parts.entrance->state() == Entrance::State::kLoading ? nullptr : parts.pipeline_parts.metrics),
      administers_(caller_.ok() && (!parts.entrance->guarded() || caller_->role == Role::kAdminister)),
      may_use_oracle_(administers_ && (parts.entrance->guarded() || parts.pipeline_parts.allow_oracle)),
      arrival_(absl::Now()),
      cancelled_(std::make_shared<std::atomic<bool>>(false)) {}

CallContext CallState::Context(const std::string& request_id) const {
  request_id_ = request_id.empty() ? absl::StrFormat("%016x", DrawSeed()) : request_id.substr(0, 128);
  CallContext result;
  result.request_id = request_id_;
  result.arrival = arrival_;
  result.deadline = DeadlineOf(context_);
  result.cancelled = cancelled_;
  result.caller = caller_.ok() ? caller_->name : "";
  result.may_use_oracle = may_use_oracle_;
  return result;
}

void CallState::Cancel() {
  int64_t never = 0;
  cancelled_at_nanoseconds_.compare_exchange_strong(never, absl::GetCurrentTimeNanos());
  cancelled_->store(true);
}

void CallState::Released() {
  if (released_.exchange(true) || metrics_ == nullptr) return;
  const int64_t cancelled_at = cancelled_at_nanoseconds_.load();
  if (cancelled_at > 0)
    metrics_->ObserveCancelToRelease(static_cast<double>(absl::GetCurrentTimeNanos() - cancelled_at) * 1e-9);
}

grpc::Status CallState::End(const absl::Status& status) {
  Released();
  if (metrics_ != nullptr) metrics_->CountRpc(rpc_, status.code());
  const absl::string_view code = Metrics::RpcCodeName(status.code());
  const double seconds = absl::ToDoubleSeconds(absl::Now() - arrival_);
  const LogLevel level = status.ok() || absl::IsCancelled(status) ? LogLevel::kDebug : LogLevel::kInfo;
  Log(level, "call_ended", request_id_, {{"code", code}, {"seconds", seconds}, {"message", status.message()}});
  return ToGrpcStatus(status, context_);
}

}  // namespace c3po
