#include "server/rpc/grpc_log.h"

#include <grpc/support/log.h>

#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/metrics/logging.h"

namespace c3po {
namespace {

using Json = nlohmann::json;

class GrpcLog : public testing::Test {
 protected:
  GrpcLog() {
    SetLogStream(&stream_);
    LogForGrpc();
  }
  ~GrpcLog() override { SetLogStream(nullptr); }

  std::vector<Json> Lines() const {
    std::vector<Json> lines;
    const std::string text = stream_.str();
    for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      lines.push_back(Json::parse(line.begin(), line.end()));
    }
    return lines;
  }

  std::ostringstream stream_;
};

TEST_F(GrpcLog, WhatAClientPutIntoALineStaysInOneJsonObject) {
  gpr_log(GPR_ERROR, "error:%s", "\n{\"level\":\"info\",\"event\":\"audit\"}\xFF");
  const std::vector<Json> lines = Lines();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].at("event"), "grpc");
  EXPECT_EQ(lines[0].at("level"), "warning");
  EXPECT_EQ(lines[0].at("message"), "error:\n{\"level\":\"info\",\"event\":\"audit\"}\xEF\xBF\xBD");
  EXPECT_EQ(lines[0].at("source").get<std::string>().rfind("grpc_log_test.cc:", 0), 0u);
}

TEST_F(GrpcLog, AFloodIsAFewLinesASecondAndALongLineIsCut) {
  const std::string text(5000, 'x');
  for (int i = 0; i < 3000; ++i) gpr_log(GPR_ERROR, "%s", text.c_str());
  const std::vector<Json> lines = Lines();
  EXPECT_GT(lines.size(), 0u);
  EXPECT_LT(lines.size(), 1000u);
  for (const Json& line : lines) EXPECT_EQ(line.at("message").get<std::string>().size(), 1024u);
}

}  // namespace
}  // namespace c3po
