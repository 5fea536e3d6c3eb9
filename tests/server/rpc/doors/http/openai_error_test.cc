#include "server/rpc/doors/http/openai_error.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/time/time.h"
#include "index/base/store_away.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

std::string HeaderOf(const HttpAnswer& answer, const std::string& name) {
  for (const HttpHeader& header : answer.head.headers) {
    if (header.name == name) return header.value;
  }
  return "";
}

TEST(OpenAiError, NamesTheField) {
  EXPECT_EQ(
      ErrorJson(absl::InvalidArgumentError("max_tokens: must be 1")),
      R"({"error":{"message":"max_tokens: must be 1","type":"BadRequestError","param":"max_tokens","code":400,"reason":"INVALID_FIELD"}})");
  EXPECT_EQ(
      ErrorJson(absl::InvalidArgumentError("request: is no JSON")),
      R"({"error":{"message":"request: is no JSON","type":"BadRequestError","param":null,"code":400,"reason":"INVALID_FIELD"}})");
}

TEST(OpenAiError, CodesAreHttps) {
  const std::pair<absl::Status, int> codes[] = {
      {absl::InvalidArgumentError(""), 400}, {absl::FailedPreconditionError(""), 400},
      {absl::UnauthenticatedError(""), 401}, {absl::PermissionDeniedError(""), 403},
      {absl::NotFoundError(""), 404},        {absl::ResourceExhaustedError(""), 429},
      {absl::InternalError(""), 500},        {absl::DataLossError(""), 500},
      {absl::UnavailableError(""), 503},     {absl::DeadlineExceededError(""), 504}};
  for (const auto& [status, code] : codes) EXPECT_EQ(ErrorAnswer(status).head.status, code) << status;
  EXPECT_EQ(ErrorAnswer(405, "no").body,
            R"({"error":{"message":"no","type":"BadRequestError","param":null,"code":405,"reason":null}})");
}

TEST(OpenAiError, SaysWhenToComeBackAndHowToBeKnown) {
  const HttpAnswer full = ErrorAnswer(WithRetryAfter(absl::ResourceExhaustedError("full"), absl::Milliseconds(1500)));
  EXPECT_EQ(HeaderOf(full, "retry-after"), "2");
  EXPECT_EQ(HeaderOf(full, "retry-after-ms"), "1500");
  EXPECT_EQ(HeaderOf(ErrorAnswer(absl::ResourceExhaustedError("full")), "retry-after"), "1");
  EXPECT_EQ(HeaderOf(ErrorAnswer(absl::UnauthenticatedError("who")), "www-authenticate"), "Bearer");
  const HttpAnswer away = ErrorAnswer(StoreAwayError("the database does not answer"));
  EXPECT_EQ(away.head.status, 503);
  EXPECT_EQ(HeaderOf(away, "retry-after"), "1");
  EXPECT_NE(away.body.find("\"reason\":\"STORE_AWAY\""), std::string::npos) << away.body;
  EXPECT_EQ(HeaderOf(ErrorAnswer(absl::UnavailableError("shutting down")), "retry-after"), "");
}

}  // namespace
}  // namespace c3po
