#include "server/rpc/call_log.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

using Json = nlohmann::json;

class CallLogTest : public ::testing::Test {
 protected:
  CallLogTest() {
    SetLogStream(&stream_);
    call_.rpc = Metrics::Rpc::kScore;
    call_.request_id = "r-1";
    call_.caller = "ann";
    call_.peer = "ipv4:10.0.0.7:51002";
    call_.collection = "science";
    call_.gate = "applied";
    call_.prompt_tokens = 17;
    call_.completion_tokens = 2;
  }
  ~CallLogTest() override {
    SetLogStream(nullptr);
    SetLogLevel(LogLevel::kInfo);
  }
  std::vector<Json> Lines() const {
    std::vector<Json> lines;
    const std::string text = stream_.str();
    for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      lines.push_back(Json::parse(line.begin(), line.end()));
      lines.back().erase("time");
    }
    return lines;
  }

  std::ostringstream stream_;
  CallRecord call_;
};

TEST_F(CallLogTest, TheTraceOfACallIsInItsLines) {
  CallLog log;
  call_.trace_id = "0af7651916cd43dd8448eb211c80319c";
  call_.span_id = "b7ad6b7169203331";
  log.Ended(call_, absl::PermissionDeniedError("no"), absl::Milliseconds(1));
  call_.span_id = "";  // Its caller did not have it sampled.
  log.Ended(call_, absl::OkStatus(), absl::Milliseconds(1));
  const std::vector<Json> lines = Lines();
  ASSERT_EQ(lines.size(), 3u);
  for (const Json& line : lines) EXPECT_EQ(line.at("trace_id"), call_.trace_id) << line;
  EXPECT_EQ(lines[0].at("event"), "audit");
  EXPECT_EQ(lines[0].at("span_id"), "b7ad6b7169203331");
  EXPECT_EQ(lines[1].at("span_id"), "b7ad6b7169203331");
  EXPECT_FALSE(lines[2].contains("span_id"));
}

TEST_F(CallLogTest, ALineHoldsWhatIsKnownAndNothingElse) {
  CallLog log;
  log.Ended(call_, absl::OkStatus(), absl::Milliseconds(125));
  CallRecord refused;
  refused.rpc = Metrics::Rpc::kGetServerInfo;
  refused.peer = "unix:";
  log.Ended(refused, absl::UnauthenticatedError("the call brings no token"), absl::ZeroDuration());
  const std::vector<Json> lines = Lines();
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0],
            Json::parse(R"({"level":"info","event":"call","request_id":"r-1","method":"GenerationService/Score",
      "caller":"ann","peer":"ipv4:10.0.0.7:51002","collection":"science","prompt_tokens":17,"completion_tokens":2,
      "gate":"applied","status":"OK","milliseconds":125.0})"));
  EXPECT_EQ(lines[1], Json::parse(R"({"level":"warning","event":"audit","action":"call",
      "method":"ServerService/GetServerInfo","peer":"unix:","outcome":"refused","status":"UNAUTHENTICATED",
      "message":"the call brings no token"})"));
  EXPECT_EQ(lines[2], Json::parse(R"({"level":"info","event":"call","method":"ServerService/GetServerInfo",
      "peer":"unix:","status":"UNAUTHENTICATED","milliseconds":0.0,"message":"the call brings no token"})"));
}

TEST_F(CallLogTest, WhatAClientMakesUpIsCut) {
  CallLog log;
  call_.collection = std::string(1 << 20, 'n');
  log.Ended(call_, absl::NotFoundError("collection " + call_.collection), absl::ZeroDuration());
  CallLog::Audit(call_, "delete", 1, {{"deleted", 0}});
  const std::vector<Json> lines = Lines();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].at("collection"), std::string(128, 'n'));
  EXPECT_EQ(lines[0].at("message").get<std::string>().size(), 1024u);
  EXPECT_EQ(lines[1].at("collection"), std::string(128, 'n'));
}

TEST_F(CallLogTest, RefusalsAreAuditedAndACrowdOfThemIsSampled) {
  CallLog log(3);
  const absl::Status full = absl::ResourceExhaustedError("the queue is full");
  for (int i = 0; i < 50; ++i) {
    log.Ended(call_, absl::PermissionDeniedError("collection: no"), absl::ZeroDuration());
    log.Ended(call_, WithReason(full, kRateReason), absl::ZeroDuration());
    log.Ended(call_, full, absl::ZeroDuration());  // Whoever else calls may be to blame: no refusal of this caller.
    log.Ended(call_, absl::NotFoundError(""), absl::ZeroDuration());
  }
  CallLog::Audit(call_, "add", 1, {{"added", 1}});
  std::vector<Json> refused;
  int64_t told = 0;
  for (const Json& line : Lines()) {
    if (line.at("event") != "audit" || line.at("outcome") != "refused") continue;
    refused.push_back(line);
    told += 1 + line.value("refusals_passed_over", 0);
  }
  ASSERT_GE(refused.size(), 3u);
  EXPECT_LT(refused.size(), 100u);  // The loop may cross a second.
  EXPECT_LE(told, 100);
  EXPECT_EQ(refused[0], Json::parse(R"({"level":"warning","event":"audit","request_id":"r-1","action":"call",
      "method":"GenerationService/Score","caller":"ann","peer":"ipv4:10.0.0.7:51002","collection":"science",
      "outcome":"refused","status":"PERMISSION_DENIED","message":"collection: no"})"));
  EXPECT_EQ(refused[1].at("status"), "RESOURCE_EXHAUSTED");
  EXPECT_EQ(Lines().back().at("outcome"), "done");
}

TEST_F(CallLogTest, ACrowdIsSampledButForTheServersOwnFaultsAndEachKindByItself) {
  CallLog log(3);
  for (int i = 0; i < 100; ++i) log.Ended(call_, absl::OkStatus(), absl::ZeroDuration());
  for (int i = 0; i < 100; ++i) log.Ended(call_, absl::NotFoundError(""), absl::ZeroDuration());
  for (int i = 0; i < 100; ++i) log.Ended(call_, absl::InternalError(""), absl::ZeroDuration());
  int well = 0, failed = 0, defects = 0, passed_over = 0;
  for (const Json& line : Lines()) {
    well += line.at("status") == "OK" ? 1 : 0;
    failed += line.at("status") == "NOT_FOUND" ? 1 : 0;
    defects += line.at("level") == "error" ? 1 : 0;
    passed_over += line.value("calls_passed_over", 0);
  }
  // A second may end in between, or several on a slow machine.
  EXPECT_GE(well, 3);
  EXPECT_GE(failed, 3);
  EXPECT_LE(well + failed + passed_over, 200);
  EXPECT_EQ(defects, 100);
}

TEST_F(CallLogTest, LevelDebugTellsEveryCall) {
  SetLogLevel(LogLevel::kDebug);
  CallLog log(1);
  for (int i = 0; i < 20; ++i) log.Ended(call_, absl::OkStatus(), absl::ZeroDuration());
  EXPECT_EQ(Lines().size(), 20u);
}

TEST_F(CallLogTest, AnAuditLineNamesTheChangeAndWhoMadeIt) {
  call_.rpc = Metrics::Rpc::kReferencesDelete;
  CallLog::Audit(call_, "delete", /*generation=*/41, {{"whole_collection", true}, {"deleted", 300}});
  EXPECT_EQ(Lines().at(0), Json::parse(R"({"level":"info","event":"audit","request_id":"r-1","action":"delete",
      "method":"ReferenceService/Delete","caller":"ann","peer":"ipv4:10.0.0.7:51002","collection":"science",
      "whole_collection":true,"deleted":300,"generation":41,"outcome":"done"})"));
}

TEST_F(CallLogTest, DefectsAreErrorsUnderTheCodeThatTheClientIsTold) {
  CallLog log;
  log.Ended(call_, absl::DataLossError("the store is lost"), absl::ZeroDuration());
  log.Ended(call_, absl::AlreadyExistsError("a defect"), absl::ZeroDuration());
  log.Ended(call_, absl::OutOfRangeError("k: 7"), absl::ZeroDuration());
  const std::vector<Json> lines = Lines();
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0]["status"], "DATA_LOSS");
  EXPECT_EQ(lines[0]["level"], "error");
  EXPECT_EQ(lines[1]["status"], "INTERNAL");
  EXPECT_EQ(lines[1]["level"], "error");
  EXPECT_EQ(lines[2]["status"], "INVALID_ARGUMENT");
  EXPECT_EQ(lines[2]["level"], "info");
}

}  // namespace
}  // namespace c3po
