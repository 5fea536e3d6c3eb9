#include "server/rpc/doors/http/openai_error.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/rpc/grpc_status.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

const char* TypeOf(int http_status) {
  switch (http_status) {
    case 401:
      return "AuthenticationError";
    case 403:
      return "PermissionDeniedError";
    case 404:
      return "NotFoundError";
    case 429:
      return "RateLimitError";
    case 503:
      return "ServiceUnavailableError";
    default:
      return http_status < 500 ? "BadRequestError" : "InternalServerError";
  }
}

std::string Text(int http_status, absl::string_view message, const Json& param, const Json& reason) {
  const Json error = {{"error",
                       {{"message", std::string(message)},
                        {"type", TypeOf(http_status)},
                        {"param", param},
                        {"code", http_status},
                        {"reason", reason}}}};
  return error.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace

int HttpStatusOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kFailedPrecondition:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return 499;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string ErrorJson(const absl::Status& status) {
  const absl::string_view message = MessageOnWire(status);
  const absl::string_view field = FieldOfMessage(message);
  const bool of_body = field == "request";
  const Json param = field.empty() || of_body ? Json(nullptr) : Json(std::string(field));
  return Text(HttpStatusOf(status), message, param, ReasonOnWire(status));
}

HttpAnswer ErrorAnswer(const absl::Status& status) {
  HttpAnswer answer;
  answer.head.status = HttpStatusOf(status);
  answer.body = ErrorJson(status);
  if (answer.head.status == 401) answer.head.headers.push_back({"www-authenticate", "Bearer"});
  const std::optional<absl::Duration> pause = PauseOf(status);
  if (!pause) return answer;
  const int64_t milliseconds = absl::ToInt64Milliseconds(*pause);
  answer.head.headers.push_back({"retry-after", absl::StrCat(std::max<int64_t>(1, (milliseconds + 999) / 1000))});
  answer.head.headers.push_back({"retry-after-ms", absl::StrCat(milliseconds)});
  return answer;
}

HttpAnswer ErrorAnswer(int http_status, const std::string& message) {
  HttpAnswer answer;
  answer.head.status = http_status;
  answer.body = Text(http_status, message, nullptr, nullptr);
  return answer;
}

}  // namespace c3po
