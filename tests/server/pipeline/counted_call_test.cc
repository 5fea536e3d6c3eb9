#include "server/pipeline/counted_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "index/base/steady_time.h"

namespace c3po {
namespace {

class Listener final : public GenerationListener {
 public:
  void OnOptimization(const OptimizationReport&) override { ++events; }
  void OnChunk(TextChunk) override { ++events; }
  void OnScores(std::vector<ContinuationScore>) override { ++events; }
  void OnDone(const absl::Status&, const CallSummary&) override { ++ends; }
  int events = 0, ends = 0;
};

class CountedCallTest : public ::testing::Test {
 protected:
  // The value of the series that begins so.
  double Value(const std::string& series) const {
    const std::string text = "\n" + metrics_.PrometheusText();
    const size_t line = text.find("\n" + series + " ");
    EXPECT_NE(line, std::string::npos) << series;
    const size_t value = line + series.size() + 2;
    double number = -1;
    EXPECT_TRUE(absl::SimpleAtod(text.substr(value, text.find('\n', value) - value), &number));
    return number;
  }
  double Ended(const std::string& reason) const {
    return Value(absl::StrCat("vllm:request_success_total{finished_reason=\"", reason, "\",model_name=\"tiny\"}"));
  }
  double EndedInAll() const { return Ended("stop") + Ended("length") + Ended("abort") + Ended("error"); }
  double Started() const { return Value("c3po_requests_started_total"); }
  std::shared_ptr<CountedCall> Begin() { return std::make_shared<CountedCall>(&metrics_, SteadyNow(), listener_); }

  Metrics metrics_{"tiny", "0.1.0"};
  const std::shared_ptr<Listener> listener_ = std::make_shared<Listener>();
};

TEST_F(CountedCallTest, EveryEndIsOneOutcome) {
  const std::pair<absl::Status, const char*> ends[] = {
      {absl::OkStatus(), "length"},
      {absl::CancelledError("the client cancelled the request"), "abort"},
      {absl::DeadlineExceededError("late"), "abort"},
      {absl::NotFoundError("collection \"no\" does not exist"), "error"},
      {absl::ResourceExhaustedError("the queue is full"), "error"},
      {absl::InternalError("not finite"), "error"},
  };
  for (const auto& [status, reason] : ends) {
    const double before = Ended(reason), all = EndedInAll();
    CallSummary summary;
    summary.finish_reason = FinishReason::kLength;
    const auto call = Begin();
    call->OnDone(status, summary);
    EXPECT_EQ(Ended(reason), before + 1) << status;
    EXPECT_EQ(EndedInAll(), all + 1) << status;
  }
  EXPECT_EQ(Started(), EndedInAll());
  EXPECT_EQ(listener_->ends, 6);
}

TEST_F(CountedCallTest, IsCountedOnceWhateverComesTwice) {
  const auto call = Begin();
  call->CountEnd(absl::ResourceExhaustedError("no worker"), CallSummary());
  call->OnDone(absl::OkStatus(), CallSummary());
  EXPECT_EQ(EndedInAll(), 1);
  EXPECT_EQ(Ended("error"), 1);
}

TEST_F(CountedCallTest, ACallThatNobodyEndedIsAnError) {
  Begin().reset();
  EXPECT_EQ(Started(), 1);
  EXPECT_EQ(Ended("error"), 1);
  EXPECT_EQ(listener_->ends, 1);  // Its client would wait for ever.
}

TEST_F(CountedCallTest, StagesAreObservedOfAnsweredCallsOnly) {
  CallSummary summary;
  StageTimings& timings = summary.timings;
  timings.queue_seconds = 1;
  timings.tokenize_seconds = 2;
  timings.embed_seconds = 4;
  timings.retrieval_seconds = 8;
  timings.prefill_seconds = 16;
  timings.optimization_seconds = 32;
  timings.optimization_wait_seconds = 64;
  timings.decode_seconds = 128;
  Begin()->OnDone(absl::CancelledError(""), summary);
  Begin()->OnDone(absl::OkStatus(), summary);
  double seconds = 1, sum = 0;
  for (const char* stage :
       {"queue", "tokenize", "embed", "retrieval", "prefill", "optimization", "optimization_wait", "decode"}) {
    const double value = Value(absl::StrCat("c3po_call_stage_seconds_total{stage=\"", stage, "\"}"));
    EXPECT_EQ(value, seconds) << stage;
    sum += value;
    seconds *= 2;
  }
  EXPECT_EQ(sum, 255);
  EXPECT_EQ(Value("vllm:request_queue_time_seconds_count{model_name=\"tiny\"}"), 1);
  EXPECT_EQ(Value("vllm:request_decode_time_seconds_sum{model_name=\"tiny\"}"), 128);
  EXPECT_EQ(Value("vllm:e2e_request_latency_seconds_count{model_name=\"tiny\"}"), 2);
}

TEST_F(CountedCallTest, PassesEverythingOn) {
  const auto call = Begin();
  call->OnOptimization(OptimizationReport());
  call->OnChunk(TextChunk());
  call->OnScores({});
  EXPECT_EQ(listener_->events, 3);
  call->OnDone(absl::OkStatus(), CallSummary());
  EXPECT_EQ(listener_->ends, 1);
}

}  // namespace
}  // namespace c3po
