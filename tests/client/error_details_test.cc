#include "client/error_details.h"

#include <gtest/gtest.h>

#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/client/fake_server.h"

namespace c3po {
namespace {

TEST(FoldStatus, NamesTheFieldOnceWithTheReason) {
  EXPECT_EQ(FoldStatus(BadField("optimization.k", "must be at least 1")).ToString(),
            "INVALID_ARGUMENT: optimization.k: must be at least 1 [reason INVALID_FIELD]");
}

TEST(FoldStatus, AppendsEveryViolationThatTheMessageDoesNotName) {
  google::rpc::BadRequest bad_request;
  for (const char* field : {"prompt", "sampling.top_p"}) {
    auto& violation = *bad_request.add_field_violations();
    violation.set_field(field);
    violation.set_description("is wrong");
  }
  google::rpc::Status rich;
  rich.add_details()->PackFrom(bad_request);
  const grpc::Status status(grpc::StatusCode::INVALID_ARGUMENT, "2 fields", rich.SerializeAsString());
  EXPECT_EQ(FoldStatus(status).ToString(), "INVALID_ARGUMENT: 2 fields: prompt: is wrong; sampling.top_p: is wrong");
}

TEST(FoldStatus, KeepsTheMessageOnOneLineAndOffTheTerminalsControls) {
  const grpc::Status status(grpc::StatusCode::INTERNAL, "a\nb\x1b[31m");
  EXPECT_EQ(FoldStatus(status).message(), "a b [31m");
}

TEST(FoldStatus, LeavesOutDetailsThatDoNotParse) {
  const grpc::Status status(grpc::StatusCode::INTERNAL, "broken", "\xff\xff\xff not a status");
  EXPECT_EQ(FoldStatus(status).ToString(), "INTERNAL: broken");
  EXPECT_FALSE(RetryDelayOf(status).has_value());
}

TEST(FoldStatus, IsOkForOk) { EXPECT_TRUE(FoldStatus(grpc::Status::OK).ok()); }

TEST(RetryDelay, IsReadFromRetryInfoToTheNanosecond) {
  EXPECT_EQ(RetryDelayOf(Overloaded(absl::Milliseconds(2500))), absl::Milliseconds(2500));
  EXPECT_FALSE(RetryDelayOf(BadField("k", "is wrong")).has_value());
}

}  // namespace
}  // namespace c3po
