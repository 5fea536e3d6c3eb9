// Load on a fake server that answers, refuses, fails and stalls as it is told.

#include "client/load/load_generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "tests/client/fake_server.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

class LoadGeneratorTest : public ::testing::Test {
 protected:
  static LoadOptions Closed(int concurrency, uint64_t calls) {
    LoadOptions options;
    options.concurrency = concurrency;
    options.calls_max = calls;
    options.prompt_tokens = *LengthDistribution::Parse("5-50");
    options.output_tokens = *LengthDistribution::Parse("7-9");
    return options;
  }

  LoadReport Run(const LoadOptions& options) {
    const auto prompts = PromptSource::FromWords(client_, options.seed, options.prompt_tokens.max(), {});
    EXPECT_TRUE(prompts.ok()) << prompts.status();
    const auto report = RunLoad(client_, *prompts, options, interrupt_, [this](const LoadProgress&) { ++progress_; });
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *report : LoadReport();
  }

  static void WriteTokens(grpc::ServerWriter<v1::GenerateResponse>* writer, int tokens) {
    v1::GenerateResponse event;
    for (int i = 0; i < tokens; ++i) {
      event.mutable_delta()->clear_token_ids();
      event.mutable_delta()->add_token_ids(7);
      writer->Write(event);
    }
    event.mutable_summary()->mutable_usage()->set_completion_tokens(tokens);
    writer->Write(event);
  }

  static grpc::Status HangUntilCancelled(grpc::ServerContext* context) {
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    return grpc::Status::CANCELLED;
  }

  FakeServer server_;
  Client client_{InsecureChannel(server_.address())};
  Cancellation interrupt_;
  std::atomic<int> progress_{0};
};

TEST_F(LoadGeneratorTest, SendsWhatWasPlannedAndReadsTheServersFigures) {
  LoadOptions options = Closed(3, 30);
  options.sampling.set_ignore_eos(true);
  options.optimization.set_collection("science");
  options.unoptimized_share = 0.5;
  const LoadReport report = Run(options);
  const auto requests = server_.generate_requests();
  ASSERT_EQ(requests.size(), 30);
  std::vector<std::pair<int, uint32_t>> sent, planned;
  int unoptimized = 0;
  for (const v1::GenerateRequest& request : requests) {
    sent.emplace_back(request.token_ids().ids_size(), request.sampling().max_tokens());
    unoptimized += request.optimization().method() == v1::METHOD_NONE ? 1 : 0;
    EXPECT_TRUE(request.sampling().ignore_eos());
    EXPECT_EQ(request.optimization().collection(), "science");
  }
  int planned_unoptimized = 0;
  for (uint64_t index = 0; index < 30; ++index) {
    const PlannedCall call = PlanCall(options, index);
    planned.emplace_back(call.prompt_tokens, call.output_tokens);
    planned_unoptimized += call.optimized ? 0 : 1;
  }
  std::sort(sent.begin(), sent.end());
  std::sort(planned.begin(), planned.end());
  EXPECT_EQ(sent, planned);
  EXPECT_EQ(unoptimized, planned_unoptimized);
  EXPECT_EQ(report.calls, 30);
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kOk).calls, 30);
  EXPECT_EQ(report.unexpected(), 0);
  EXPECT_EQ(report.prompt_tokens, 90);  // The fake server says 3 and 2, whatever was asked for.
  EXPECT_EQ(report.output_tokens, 60);
  EXPECT_EQ(report.time_to_first_token.count, 30);
  EXPECT_EQ(report.inter_token.count, 30);
  EXPECT_EQ(report.optimization.count, 30 - planned_unoptimized);
  EXPECT_GE(report.end_to_end.p50, report.time_to_first_token.p50);
}

TEST_F(LoadGeneratorTest, CountsEveryStatusAndTriesNothingTwice) {
  std::atomic<int> calls{0};
  server_.on_generate = [&](grpc::ServerContext*, const v1::GenerateRequest&,
                            grpc::ServerWriter<v1::GenerateResponse>* writer) -> grpc::Status {
    const int call = calls++;
    if (call % 4 == 0) return Overloaded(absl::Milliseconds(1));
    if (call % 4 == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
    if (call % 4 == 2) return BadField("prompt", "is odd");
    WriteTokens(writer, 3);
    return grpc::Status::OK;
  };
  LoadOptions options = Closed(4, 80);
  options.refused_pause = absl::ZeroDuration();
  const LoadReport report = Run(options);
  EXPECT_EQ(calls, 80);
  EXPECT_EQ(report.calls, 80);
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kResourceExhausted).calls, 20);
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kResourceExhausted).with_retry_advice, 20);
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kUnavailable).calls, 20);
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kUnavailable).with_retry_advice, 0);
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kInvalidArgument).calls, 20);
  EXPECT_THAT(report.statuses.at(absl::StatusCode::kInvalidArgument).first_message, HasSubstr("prompt: is odd"));
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kOk).calls, 20);
  EXPECT_EQ(report.unexpected(), 40);
  EXPECT_EQ(report.end_to_end.count, 20);
  EXPECT_EQ(report.inter_token.count, 40);
  EXPECT_EQ(report.output_tokens, 60);
}

TEST_F(LoadGeneratorTest, AClosedLoopHasAsManyCallsInFlightAsItHasCallers) {
  std::atomic<int> now{0}, most{0};
  server_.on_generate = [&](grpc::ServerContext*, const v1::GenerateRequest&,
                            grpc::ServerWriter<v1::GenerateResponse>* writer) {
    const int running = ++now;
    int seen = most;
    while (seen < running && !most.compare_exchange_weak(seen, running)) {
    }
    while (most < 5) absl::SleepFor(absl::Milliseconds(1));  // The first five end once all of them are there.
    WriteTokens(writer, 1);
    --now;
    return grpc::Status::OK;
  };
  const LoadReport report = Run(Closed(5, 50));
  EXPECT_EQ(report.in_flight_max, 5);
  EXPECT_EQ(most, 5);
}

TEST_F(LoadGeneratorTest, ARefusedCallerComesBackWhenTheServerSays) {
  server_.on_generate = [](grpc::ServerContext*, const v1::GenerateRequest&,
                           grpc::ServerWriter<v1::GenerateResponse>*) { return Overloaded(absl::Milliseconds(150)); };
  const absl::Time start = absl::Now();
  const LoadReport report = Run(Closed(2, 8));
  // One of the two callers asked at least four times, and waited between.
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(3 * 150));
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kResourceExhausted).calls, 8);
}

TEST_F(LoadGeneratorTest, PlannedCancellationsReachTheServerAndAreNoFailures) {
  std::atomic<int> arrived{0}, ended{0};
  server_.on_generate = [&](grpc::ServerContext* context, const v1::GenerateRequest&,
                            grpc::ServerWriter<v1::GenerateResponse>*) {
    ++arrived;
    const grpc::Status status = HangUntilCancelled(context);
    ++ended;
    return status;
  };
  LoadOptions options = Closed(4, 20);
  options.cancelled_share = 1;
  options.cancel_after_max = absl::Milliseconds(200);
  const LoadReport report = Run(options);
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kCancelled).calls, 20);
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kCancelled).as_planned, 20);
  EXPECT_EQ(report.unexpected(), 0);
  EXPECT_EQ(report.end_to_end.count, 0);
  // A call that was cancelled before it was sent never arrives; none hangs on.
  for (int i = 0; i < 6000 && ended < arrived; ++i) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_GT(arrived, 0);
  EXPECT_EQ(ended, arrived);
  server_.Stop();  // A call that was cancelled on its way may reach the handler only now.
}

TEST_F(LoadGeneratorTest, SlowReadersTakeTheirTimeAndStayOutOfTheLatencies) {
  LoadOptions options = Closed(2, 4);
  options.slow_reader_share = 1;
  options.slow_read_pause = absl::Milliseconds(50);
  const LoadReport report = Run(options);
  EXPECT_EQ(report.slow_calls, 4);
  EXPECT_EQ(report.end_to_end.count, 0);
  EXPECT_EQ(report.output_tokens, 8);
  EXPECT_GE(report.elapsed, absl::Milliseconds(2 * 4 * 50));  // Two calls a caller, four messages each.
}

TEST_F(LoadGeneratorTest, AnOpenLoopSendsWhatArrivesAndLeavesOutTheWarmUp) {
  LoadOptions options = Closed(0, 0);
  options.calls_max.reset();
  options.rate_per_second = 100;
  options.warmup = absl::Milliseconds(300);
  options.duration = absl::Milliseconds(700);
  const LoadReport report = Run(options);
  PoissonArrivals arrivals(100, options.seed);
  uint64_t warmup = 0, recorded = 0;
  for (absl::Duration moment = arrivals.Next(); moment < absl::Seconds(1); moment = arrivals.Next()) {
    ++(moment < options.warmup ? warmup : recorded);
  }
  EXPECT_EQ(report.warmup_calls, warmup);
  EXPECT_EQ(report.calls, recorded);
  EXPECT_EQ(server_.generate_requests().size(), warmup + recorded);
  EXPECT_GE(report.send_delay.p50, 0);
}

// Forty calls arrive in 0.2 s; the server takes one at a time and 20 ms for each. Who measured from the moment of
// sending would find 20 ms for all of them; the one that is last arrived 0.6 s before its answer.
TEST_F(LoadGeneratorTest, AnOpenLoopCountsTheWaitForAStalledServer) {
  server_.on_generate = [&](grpc::ServerContext*, const v1::GenerateRequest&,
                            grpc::ServerWriter<v1::GenerateResponse>* writer) {
    absl::SleepFor(absl::Milliseconds(20));
    WriteTokens(writer, 1);
    return grpc::Status::OK;
  };
  LoadOptions options = Closed(0, 40);
  options.rate_per_second = 200;
  options.in_flight_max = 1;
  const LoadReport report = Run(options);
  PoissonArrivals arrivals(200, options.seed);
  absl::Duration last;
  for (int i = 0; i < 40; ++i) last = arrivals.Next();
  EXPECT_EQ(report.calls, 40);
  EXPECT_EQ(report.in_flight_max, 1);
  EXPECT_GE(report.end_to_end.max, 40 * 0.020 - absl::ToDoubleSeconds(last));
  EXPECT_GE(report.time_to_first_token.max, 40 * 0.020 - absl::ToDoubleSeconds(last));
  EXPECT_GE(report.send_delay.max, 39 * 0.020 - absl::ToDoubleSeconds(last));
}

TEST_F(LoadGeneratorTest, AnInterruptEndsCallsInFlightAndKeepsWhatWasRecorded) {
  std::atomic<int> calls{0};
  server_.on_generate = [&](grpc::ServerContext* context, const v1::GenerateRequest&,
                            grpc::ServerWriter<v1::GenerateResponse>* writer) {
    if (++calls > 3) return HangUntilCancelled(context);
    WriteTokens(writer, 1);
    return grpc::Status::OK;
  };
  std::thread presser([&] {
    while (calls < 3 + 4 || progress_ == 0) absl::SleepFor(absl::Milliseconds(5));
    interrupt_.Cancel();
  });
  LoadOptions options = Closed(4, 1000);
  options.cancelled_share = 0.5;  // These have a cancellation of their own.
  options.cancel_after_max = absl::Hours(1);
  const LoadReport report = Run(options);
  presser.join();
  EXPECT_EQ(report.calls, 3);
  EXPECT_EQ(report.interrupted_calls, 4);
  EXPECT_GT(progress_, 0);
}

TEST_F(LoadGeneratorTest, PromptsOfAFileAreAskedAsTheyStand) {
  const std::string path = ::testing::TempDir() + "prompts.jsonl";
  std::ofstream(path) << "{\"prompt\": \"short\", \"max_tokens\": 3}\n\n{\"prompt\": \"open\", \"answer\": \"x\"}\n";
  const auto prompts = PromptSource::FromFile(path);
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  const LoadOptions options = Closed(2, 60);
  ASSERT_TRUE(RunLoad(client_, *prompts, options, interrupt_, [](const LoadProgress&) {}).ok());
  int shorts = 0;
  for (const v1::GenerateRequest& request : server_.generate_requests()) {
    shorts += request.prompt() == "short" ? 1 : 0;
    if (request.prompt() == "short") {
      EXPECT_EQ(request.sampling().max_tokens(), 3);
    } else {
      EXPECT_EQ(request.prompt(), "open");
      EXPECT_GE(request.sampling().max_tokens(), 7);
    }
  }
  EXPECT_GT(shorts, 10);
  EXPECT_LT(shorts, 50);
}

TEST_F(LoadGeneratorTest, MalformedPromptFilesNameTheLine) {
  const auto error = [](const std::string& text) {
    const std::string path = ::testing::TempDir() + "wrong.jsonl";
    std::ofstream(path) << text;
    return std::string(PromptSource::FromFile(path).status().message());
  };
  EXPECT_THAT(error("{\"prompt\": \"a\"}\n[]\n"), HasSubstr("wrong.jsonl:2: not a JSON object"));
  EXPECT_THAT(error("{\"prompt\": 5}\n"), HasSubstr("wrong.jsonl:1: \"prompt\" is missing or not a text"));
  EXPECT_THAT(error("{\"prompt\": \"a\", \"max_tokens\": 0}\n"), HasSubstr("wrong.jsonl:1: \"max_tokens\""));
  EXPECT_THAT(error("\n"), HasSubstr("holds no prompts"));
  EXPECT_EQ(PromptSource::FromFile("/nowhere.jsonl").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace c3po
