#include "server/rpc/grpc_status.h"

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>

#include <cctype>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "index/base/device_failure.h"
#include "index/base/store_away.h"
#include "index/base/utf8.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

// Where the status does not say.
constexpr absl::Duration kRetryAfter = absl::Milliseconds(500), kRetryStoreAfter = absl::Seconds(1);

// gRPC's clients take 8 KiB of trailing metadata, which holds the message up to three times, and escaped.
constexpr size_t kMessageBytesMax = 1024;

const char* ReasonOfCode(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return "INVALID_FIELD";
    case absl::StatusCode::kNotFound:
      return "NOT_FOUND";
    case absl::StatusCode::kUnauthenticated:
      return "UNAUTHENTICATED";
    case absl::StatusCode::kPermissionDenied:
      return "PERMISSION";
    case absl::StatusCode::kFailedPrecondition:
      return "PRECONDITION";
    case absl::StatusCode::kResourceExhausted:
      return "CAPACITY";
    case absl::StatusCode::kDeadlineExceeded:
      return "DEADLINE";
    case absl::StatusCode::kCancelled:
      return "CANCELLED";
    case absl::StatusCode::kUnavailable:
      if (!DeviceFailure().ok()) return "DEVICE_FAILED";
      return "SHUTTING_DOWN";
    case absl::StatusCode::kDataLoss:
      return "DATA_LOSS";
    default:
      return "INTERNAL";
  }
}

}  // namespace

std::string ReasonOnWire(const absl::Status& status) {
  if (const auto reason = ReasonOf(status)) return *reason;
  return IsStoreAway(status) ? std::string(kStoreAwayReason) : ReasonOfCode(status.code());
}

absl::string_view FieldOfMessage(absl::string_view message) {
  const size_t colon = message.find(": ");
  if (colon == absl::string_view::npos || colon == 0) return {};
  for (const char c : message.substr(0, colon)) {
    const bool allowed = std::islower(static_cast<unsigned char>(c)) || std::isdigit(static_cast<unsigned char>(c)) ||
                         c == '_' || c == '-' || c == '.' || c == '[' || c == ']';
    if (!allowed) return {};
  }
  return message.substr(0, colon);
}

std::optional<absl::Duration> PauseOf(const absl::Status& status) {
  const std::optional<absl::Duration> said = RetryAfterOf(status);
  if (absl::IsResourceExhausted(status)) return said.value_or(kRetryAfter);
  if (IsStoreAway(status)) return said.value_or(kRetryStoreAfter);
  return absl::IsUnavailable(status) ? said : std::nullopt;
}

absl::string_view MessageOnWire(const absl::Status& status) { return Utf8Prefix(status.message(), kMessageBytesMax); }

grpc::StatusCode ToGrpcCode(absl::StatusCode code) {
  if (code == absl::StatusCode::kOk) return grpc::StatusCode::OK;
  if (absl::string_view(ReasonOfCode(code)) == "INTERNAL") return grpc::StatusCode::INTERNAL;
  if (code == absl::StatusCode::kOutOfRange) return grpc::StatusCode::INVALID_ARGUMENT;
  return static_cast<grpc::StatusCode>(code);
}

grpc::Status ToGrpcStatus(const absl::Status& status, grpc::CallbackServerContext* context) {
  if (status.ok()) return grpc::Status::OK;
  const absl::string_view message = MessageOnWire(status);
  const grpc::StatusCode code = ToGrpcCode(status.code());
  google::rpc::Status details;
  details.set_code(code);
  details.set_message(std::string(message));
  google::rpc::ErrorInfo info;
  info.set_reason(ReasonOnWire(status));
  info.set_domain("c3po");
  details.add_details()->PackFrom(info);
  const absl::string_view field = FieldOfMessage(message);
  if (code == grpc::StatusCode::INVALID_ARGUMENT && !field.empty()) {
    google::rpc::BadRequest bad_request;
    auto* violation = bad_request.add_field_violations();
    violation->set_field(std::string(field));
    violation->set_description(std::string(message.substr(field.size() + 2)));
    details.add_details()->PackFrom(bad_request);
  }
  if (const std::optional<absl::Duration> said = PauseOf(status)) {
    const int64_t pause = absl::ToInt64Milliseconds(*said);
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(pause / 1000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(pause % 1000 * 1000000));
    details.add_details()->PackFrom(retry);
    if (context != nullptr) context->AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(pause));
  }
  return grpc::Status(code, std::string(message), details.SerializeAsString());
}

}  // namespace c3po
