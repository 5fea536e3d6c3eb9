#include "client/error_details.h"

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace c3po {
namespace {

// The first detail of type T; false when there is none or it does not parse.
template <typename T>
bool FindDetail(const grpc::Status& status, T* detail) {
  google::rpc::Status rich;
  if (status.error_details().empty() || !rich.ParseFromString(status.error_details())) return false;
  for (const google::protobuf::Any& any : rich.details()) {
    if (any.Is<T>() && any.UnpackTo(detail)) return true;
  }
  return false;
}

// A message may carry anything a client sent to the server; a terminal must not obey it.
std::string OnOneLine(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return text;
}

}  // namespace

absl::Status FoldStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  std::string message = status.error_message();
  google::rpc::BadRequest bad_request;
  if (FindDetail(status, &bad_request)) {
    std::vector<std::string> unnamed;
    for (const google::rpc::BadRequest::FieldViolation& violation : bad_request.field_violations()) {
      const bool named =
          absl::StrContains(message, violation.field()) && absl::StrContains(message, violation.description());
      if (!named) unnamed.push_back(absl::StrCat(violation.field(), ": ", violation.description()));
    }
    if (!unnamed.empty()) absl::StrAppend(&message, message.empty() ? "" : ": ", absl::StrJoin(unnamed, "; "));
  }
  google::rpc::ErrorInfo info;
  if (FindDetail(status, &info) && !info.reason().empty()) {
    absl::StrAppend(&message, message.empty() ? "" : " ", "[reason ", info.reason(), "]");
  }
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), OnOneLine(std::move(message)));
}

std::optional<absl::Duration> RetryDelayOf(const grpc::Status& status) {
  google::rpc::RetryInfo info;
  if (!FindDetail(status, &info) || !info.has_retry_delay()) return std::nullopt;
  const absl::Duration delay =
      absl::Seconds(info.retry_delay().seconds()) + absl::Nanoseconds(info.retry_delay().nanos());
  if (delay < absl::ZeroDuration()) return std::nullopt;
  return delay;
}

}  // namespace c3po
