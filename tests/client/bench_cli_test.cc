// Runs the built `c3po bench` against a fake server.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "tests/client/child_process.h"
#include "tests/client/fake_server.h"

namespace c3po {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using Json = nlohmann::json;

class BenchCliTest : public ::testing::Test {
 protected:
  std::vector<std::string> Arguments(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {C3PO_CLI_BINARY, "bench", "--server", server_.address(), "--warmup", "0"});
    return arguments;
  }
  ChildResult Run(const std::vector<std::string>& arguments) const { return ChildProcess(Arguments(arguments)).Wait(); }

  FakeServer server_;
};

TEST_F(BenchCliTest, PrintsPercentilesThroughputAndStatuses) {
  const ChildResult result = Run({"--requests", "20", "--concurrency", "2", "--max-tokens", "5"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("p99"), HasSubstr("time to first token"), HasSubstr("between tokens"),
                    HasSubstr("end to end"), HasSubstr("optimization"), HasSubstr("waiting for turns of it"),
                    HasSubstr("OK"), HasSubstr("requests/s"), HasSubstr("closed loop, 2 callers")));
  const auto requests = server_.generate_requests();
  ASSERT_EQ(requests.size(), 20);
  for (const v1::GenerateRequest& request : requests) {
    EXPECT_EQ(request.sampling().max_tokens(), 5);
    EXPECT_TRUE(request.sampling().ignore_eos());
    EXPECT_GE(request.token_ids().ids_size(), 32);
    EXPECT_LE(request.token_ids().ids_size(), 128);
  }
}

TEST_F(BenchCliTest, PrintsJsonAndTakesTheMethodsFlags) {
  const ChildResult result = Run({"--requests", "5", "--rate", "200", "--json", "--method", "ngd", "--k", "7",
                                  "--collection", "science", "--prompt-tokens", "9", "--load-seed", "3"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json["calls"], 5);
  EXPECT_EQ(json["statuses"]["OK"]["calls"], 5);
  EXPECT_EQ(json["options"]["rate_per_second"], 200);
  EXPECT_EQ(json["options"]["seed"], 3);
  EXPECT_EQ(json["server"]["model"]["name"], "tiny");
  EXPECT_EQ(json["latency_seconds"]["optimization"]["count"], 5);
  EXPECT_EQ(json["latency_seconds"]["optimization_wait"]["count"], 5);
  const v1::GenerateRequest request = server_.generate_requests().at(0);
  EXPECT_EQ(request.optimization().k(), 7);
  EXPECT_EQ(request.optimization().collection(), "science");
  EXPECT_EQ(request.token_ids().ids_size(), 9);
}

TEST_F(BenchCliTest, RefusalsAreCountedAndOnlyStrictFailsOnFailures) {
  std::atomic<int> calls{0};
  server_.on_generate = [&](grpc::ServerContext*, const v1::GenerateRequest&,
                            grpc::ServerWriter<v1::GenerateResponse>* writer) -> grpc::Status {
    const int call = calls++ % 3;
    if (call == 0) return Overloaded(absl::Milliseconds(1));
    if (call == 1) return grpc::Status(grpc::StatusCode::INTERNAL, "a defect");
    writer->Write(v1::GenerateResponse());
    return grpc::Status::OK;
  };
  const ChildResult result = Run({"--requests", "9", "--concurrency", "1"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("3 told when to come back"), HasSubstr("INTERNAL"), HasSubstr("a defect")));
  const ChildResult strict = Run({"--requests", "9", "--concurrency", "1", "--strict"});
  EXPECT_EQ(strict.exit_code, 1);
  EXPECT_THAT(strict.err, HasSubstr("3 calls ended as they should not"));
}

TEST_F(BenchCliTest, AServerThatAnswersNothingIsTheExitCode) {
  server_.on_generate = [](grpc::ServerContext*, const v1::GenerateRequest&,
                           grpc::ServerWriter<v1::GenerateResponse>*) {
    return grpc::Status(grpc::StatusCode::PERMISSION_DENIED, "not you");
  };
  const ChildResult result = Run({"--requests", "2"});
  EXPECT_EQ(result.exit_code, 10);
  EXPECT_THAT(result.err, HasSubstr("no call ended well; the first: not you"));
}

TEST_F(BenchCliTest, AnInterruptPrintsWhatHadEnded) {
  std::atomic<int> calls{0};
  server_.on_generate = [&](grpc::ServerContext* context, const v1::GenerateRequest&,
                            grpc::ServerWriter<v1::GenerateResponse>* writer) -> grpc::Status {
    if (calls++ >= 2) {
      while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
      return grpc::Status::CANCELLED;
    }
    writer->Write(v1::GenerateResponse());
    return grpc::Status::OK;
  };
  ChildProcess child(Arguments({"--concurrency", "2", "--duration", "600"}));
  while (calls < 4) absl::SleepFor(absl::Milliseconds(5));
  child.Signal(SIGINT);
  const ChildResult result = child.Wait();
  EXPECT_EQ(result.exit_code, 9);
  EXPECT_THAT(result.out, HasSubstr("2 interrupted"));
}

TEST_F(BenchCliTest, WhatIsWrongIsNamedBeforeAnythingIsSent) {
  const auto error = [this](const std::vector<std::string>& arguments) {
    const ChildResult result = Run(arguments);
    EXPECT_NE(result.exit_code, 0);
    return result.err;
  };
  EXPECT_THAT(error({"--prompt-tokens", "x"}), HasSubstr("--prompt-tokens: lengths: \"x\""));
  EXPECT_THAT(error({"--cancelled", "1.5"}), HasSubstr("cancelled: 1.5 is not in [0, 1]"));
  EXPECT_THAT(error({"--rate", "0"}), HasSubstr("concurrency, rate"));
  EXPECT_THAT(error({"--rate", "5", "--concurrency", "2"}), HasSubstr("excludes"));
  server_.on_info = [](grpc::ServerContext*, v1::GetServerInfoResponse* response) {
    response->mutable_model()->set_context_window(100);
    return grpc::Status::OK;
  };
  EXPECT_THAT(error({}), HasSubstr("the model's context window is 100"));
  EXPECT_TRUE(server_.generate_requests().empty());
}

}  // namespace
}  // namespace c3po
