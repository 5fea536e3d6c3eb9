#include "server/rpc/grpc_status.h"

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "index/base/device_failure.h"
#include "index/base/store_away.h"
#include "server/metrics/metrics.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

// Reason → name of its gRPC code, as the documentation has them.
std::map<std::string, std::string> DocumentedReasons() {
  std::ifstream file(absl::StrCat(C3PO_SOURCE_DIR, "/proto/c3po/v1/errors.md"));
  std::map<std::string, std::string> reasons;
  std::string line;
  while (std::getline(file, line)) {
    const std::vector<std::string> cells = absl::StrSplit(line, " | ");
    absl::string_view reason = cells.front();
    if (cells.size() < 4 || !absl::ConsumePrefix(&reason, "| `")) continue;
    reasons[std::string(absl::StripSuffix(reason, "`"))] = cells[1];
  }
  return reasons;
}

template <typename Detail>
std::vector<Detail> DetailsOf(const grpc::Status& status) {
  google::rpc::Status rich;
  EXPECT_TRUE(rich.ParseFromString(status.error_details()));
  std::vector<Detail> found;
  for (const auto& any : rich.details()) {
    Detail detail;
    if (any.UnpackTo(&detail)) found.push_back(detail);
  }
  return found;
}

std::string ReasonOnTheWire(const absl::Status& status) {
  const auto infos = DetailsOf<google::rpc::ErrorInfo>(ToGrpcStatus(status, nullptr));
  EXPECT_EQ(infos.size(), 1u);
  if (infos.empty()) return "";
  EXPECT_EQ(infos.front().domain(), "c3po");
  return infos.front().reason();
}

TEST(ToGrpcStatus, EveryCodeHasAReasonOfTheClosedListWithTheCodeDocumentedThere) {
  const std::map<std::string, std::string> documented = DocumentedReasons();
  ASSERT_EQ(documented.size(), 16u);
  for (int code = 1; code <= 20; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "what happened");
    const std::string reason = ReasonOnTheWire(status);
    ASSERT_TRUE(documented.count(reason)) << code << " gives " << reason;
    const grpc::StatusCode on_wire = ToGrpcStatus(status, nullptr).error_code();
    EXPECT_EQ(absl::StatusCodeToString(static_cast<absl::StatusCode>(on_wire)), documented.at(reason)) << code;
  }
  const absl::Status loading = WithReason(absl::UnavailableError("loading"), "LOADING");
  EXPECT_EQ(ReasonOnTheWire(loading), "LOADING");
  EXPECT_EQ(documented.at("LOADING"), "UNAVAILABLE");
  EXPECT_EQ(ReasonOnTheWire(StoreAwayError("the database does not answer")), "STORE_AWAY");
  EXPECT_EQ(documented.at("STORE_AWAY"), "UNAVAILABLE");
  EXPECT_EQ(ReasonOnTheWire(WithReason(absl::UnavailableError("at 5, not 7"), kBehindReason)), "BEHIND");
  EXPECT_EQ(documented.at("BEHIND"), "UNAVAILABLE");
  NoteDeviceFailure("computing: an error");
  EXPECT_EQ(ReasonOnTheWire(DeviceFailure()), "DEVICE_FAILED");
  EXPECT_EQ(documented.at("DEVICE_FAILED"), "UNAVAILABLE");
  ForgetDeviceFailure();
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus(), nullptr).ok());
}

// Beyond 8 KiB of metadata clients drop it all, and tell RESOURCE_EXHAUSTED in place of what happened.
TEST(ToGrpcStatus, AMessageThatRepeatsALongNameStillFitsTheMetadata) {
  std::string name;
  while (name.size() < 100000) name += "\xc3\xa9";  // Each byte takes three on the wire.
  const grpc::Status status = ToGrpcStatus(absl::InvalidArgumentError("collection: " + name), nullptr);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_LT(3 * status.error_message().size() + status.error_details().size() * 4 / 3, 8000u);
  const auto violations = DetailsOf<google::rpc::BadRequest>(status);
  ASSERT_EQ(violations.size(), 1u);
  EXPECT_EQ(violations[0].field_violations(0).field(), "collection");
}

TEST(ToGrpcStatus, RetryInfoSaysWhatTheStatusSaysAndADefaultOtherwise) {
  const absl::Status full = absl::ResourceExhaustedError("the queue is full");
  const auto pause = [](const absl::Status& status) {
    const auto infos = DetailsOf<google::rpc::RetryInfo>(ToGrpcStatus(status, nullptr));
    EXPECT_EQ(infos.size(), 1u);
    return absl::Seconds(infos.at(0).retry_delay().seconds()) + absl::Nanoseconds(infos.at(0).retry_delay().nanos());
  };
  EXPECT_EQ(pause(full), absl::Milliseconds(500));
  EXPECT_EQ(pause(WithRetryAfter(full, absl::Milliseconds(2750))), absl::Milliseconds(2750));
  EXPECT_EQ(pause(WithRetryAfter(full, -absl::Seconds(1))), absl::Milliseconds(1));
  EXPECT_EQ(pause(StoreAwayError("x")), absl::Seconds(1));
  EXPECT_EQ(pause(Reworded(WithRetryAfter(StoreAwayError("x"), absl::Seconds(3)), "profile: x")), absl::Seconds(3));
  EXPECT_EQ(pause(WithRetryAfter(absl::UnavailableError("x"), absl::Seconds(2))), absl::Seconds(2));
  for (const absl::Status& status : {absl::InternalError("x"), absl::UnavailableError("shutting down")})
    EXPECT_TRUE(DetailsOf<google::rpc::RetryInfo>(ToGrpcStatus(status, nullptr)).empty());
}

TEST(ToGrpcStatus, AFieldAtTheBeginningOfTheMessageBecomesAViolation) {
  const auto fields = [](const std::string& message) {
    std::vector<std::string> paths;
    for (const auto& bad :
         DetailsOf<google::rpc::BadRequest>(ToGrpcStatus(absl::InvalidArgumentError(message), nullptr))) {
      for (const auto& violation : bad.field_violations()) paths.push_back(violation.field());
    }
    return paths;
  };
  EXPECT_EQ(fields("optimization.critical_layers[2]: layer 99 does not exist"),
            std::vector<std::string>{"optimization.critical_layers[2]"});
  EXPECT_EQ(fields("c3po-method: is none"), std::vector<std::string>{"c3po-method"});
  EXPECT_TRUE(fields("The whole request: is wrong").empty());
  EXPECT_TRUE(fields("no field").empty());
}

// What metrics and the call log name is the code that the client was told.
TEST(GrpcStatus, MetricsAndLogNameTheCodeOnTheWire) {
  const std::map<int, std::string> names = {
      {0, "OK"},        {1, "CANCELLED"},         {3, "INVALID_ARGUMENT"},   {4, "DEADLINE_EXCEEDED"},
      {5, "NOT_FOUND"}, {7, "PERMISSION_DENIED"}, {8, "RESOURCE_EXHAUSTED"}, {9, "FAILED_PRECONDITION"},
      {13, "INTERNAL"}, {14, "UNAVAILABLE"},      {15, "DATA_LOSS"},         {16, "UNAUTHENTICATED"}};
  for (int code = 0; code <= 17; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "text");
    const auto told = static_cast<int>(ToGrpcStatus(status, nullptr).error_code());
    ASSERT_TRUE(names.contains(told)) << code << " is told as " << told << ", which errors.md does not have";
    EXPECT_EQ(Metrics::RpcCodeName(status.code()), names.at(told)) << code;
  }
}

}  // namespace
}  // namespace c3po
