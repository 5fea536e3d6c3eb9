#include "server/pipeline/stage_trace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "index/base/steady_time.h"
#include "server/pipeline/counted_call.h"
#include "server/trace/tracer.h"
#include "tests/server/pipeline/made_up_pipeline.h"

namespace c3po {
namespace {

// The spans of calls that have ended, the call's own first.
class Spans {
 public:
  CallTrace::Deliver Taker() {
    return [this](std::vector<Span> spans) {
      absl::MutexLock lock(&mu_);
      spans_ = std::move(spans);
    };
  }
  std::vector<Span> all() const {
    absl::MutexLock lock(&mu_);
    return spans_;
  }
  std::string Names() const {
    std::string names;
    const std::vector<Span> spans = all();
    for (size_t i = 1; i < spans.size(); ++i) absl::StrAppend(&names, i > 1 ? " " : "", spans[i].name);
    return names;
  }

 private:
  mutable absl::Mutex mu_;
  std::vector<Span> spans_ ABSL_GUARDED_BY(mu_);
};

const AttributeValue* Find(const Span& span, absl::string_view key) {
  for (const SpanAttribute& attribute : span.attributes) {
    if (attribute.key == key) return &attribute.value;
  }
  return nullptr;
}
std::string TextOf(const Span& span, absl::string_view key) {
  const AttributeValue* value = Find(span, key);
  return value == nullptr ? "none" : std::get<std::string>(*value);
}
int64_t NumberOf(const Span& span, absl::string_view key) {
  const AttributeValue* value = Find(span, key);
  return value == nullptr ? -1 : std::get<int64_t>(*value);
}
double DoubleOf(const Span& span, absl::string_view key) {
  const AttributeValue* value = Find(span, key);
  return value == nullptr ? -1 : std::get<double>(*value);
}

// Of what the scheduler says of a call that arrived 10 s ago, in seconds: 1 until a worker had tokenized, 2 until the
// batch, 3 of prefill, 0.5 of optimization, 0.25 of waiting, and the rest to decode.
class StageTraceTest : public testing::Test {
 protected:
  StageTraceTest() {
    summary_.usage = {7, 5, 0};
    summary_.sequence.before_batch_seconds = 2;
    summary_.sequence.prefill_seconds = 3;
    summary_.sequence.optimization_seconds = summary_.timings.optimization_seconds = 0.5;
    summary_.sequence.optimization_wait_seconds = 0.25;
    summary_.sequence.decode_seconds = 4.25;
    summary_.sequence.time_to_first_token_seconds = 6;
    summary_.sequence.cached_prompt_tokens = 3;
    summary_.answers = {{FinishReason::kStop, 2, std::nullopt}, {FinishReason::kLength, 3, std::nullopt}};
    report_.settings.method = Method::kNeighborhoodGradientDescent;
    report_.settings.collection = "set";
    report_.gate = GateDecision::kApplied;
    report_.neighbors.resize(4);
    report_.losses = {2, 1, 0.5, 0.75};
    report_.validation_losses = {3, 2, 1.5, 1.75};
    report_.selected_step = 2;
  }
  void End(const absl::Status& status) {
    stages_.NoteEnd(status, summary_);
    trace_->End(SteadyNow(), !status.ok(), status.message());
  }
  void Tokenized() { trace_->AddStage("tokenize", arrival_, arrival_ + absl::Seconds(1)); }
  // Seconds after the arrival.
  double Begin(const Span& span) const { return Since(span.begin_unix_nanoseconds); }
  double End(const Span& span) const { return Since(span.end_unix_nanoseconds); }
  double Since(int64_t nanoseconds) const {
    return static_cast<double>(nanoseconds - spans_.all()[0].begin_unix_nanoseconds) * 1e-9;
  }

  Spans spans_;
  const absl::Time arrival_ = SteadyNow() - absl::Seconds(10);
  const Tracer tracer_{1, spans_.Taker()};
  const std::shared_ptr<CallTrace> trace_ = tracer_.Begin(std::nullopt, "call", arrival_);
  StageTrace stages_{trace_, arrival_};
  OptimizationReport report_;
  CallSummary summary_;
};

TEST_F(StageTraceTest, StagesFollowEachOtherAndEachSaysWhatItDid) {
  Tokenized();
  stages_.NoteReport(report_);
  End(absl::OkStatus());
  ASSERT_EQ(spans_.Names(), "tokenize queue prefill optimize decode");
  const std::vector<Span> spans = spans_.all();
  const double bounds[] = {0, 1, 2, 5, 5.75};
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_NEAR(Begin(spans[i + 1]), bounds[i], 1e-6) << spans[i + 1].name;
    if (i == 4) break;
    EXPECT_NEAR(End(spans[i + 1]), bounds[i + 1], 1e-6) << spans[i + 1].name;
  }
  EXPECT_GE(End(spans[5]), 10);
  EXPECT_LE(End(spans[5]), End(spans[0]));
  EXPECT_EQ(TextOf(spans[2], "c3po.queue"), "engine");
  EXPECT_EQ(NumberOf(spans[3], "gen_ai.usage.input_tokens"), 7);
  EXPECT_EQ(NumberOf(spans[3], "gen_ai.usage.cache_read.input_tokens"), 3);
  const Span& optimize = spans[4];
  EXPECT_EQ(TextOf(optimize, "c3po.method"), TermOf(Method::kNeighborhoodGradientDescent).name);
  EXPECT_EQ(TextOf(optimize, "c3po.collection"), "set");
  EXPECT_EQ(TextOf(optimize, "c3po.gate"), "applied");
  EXPECT_EQ(NumberOf(optimize, "c3po.neighbors"), 4);
  EXPECT_EQ(NumberOf(optimize, "c3po.optimization.steps"), 3);
  EXPECT_EQ(DoubleOf(optimize, "c3po.optimization.loss_before"), 2);
  EXPECT_EQ(DoubleOf(optimize, "c3po.optimization.loss_after"), 0.5);
  EXPECT_EQ(DoubleOf(optimize, "c3po.optimization.validation_loss_before"), 3);
  EXPECT_EQ(DoubleOf(optimize, "c3po.optimization.validation_loss_after"), 1.5);
  EXPECT_EQ(DoubleOf(optimize, "c3po.optimization.wait_seconds"), 0.25);
  EXPECT_EQ(NumberOf(spans[5], "gen_ai.usage.output_tokens"), 5);
  ASSERT_EQ(spans[5].events.size(), 1u);
  EXPECT_EQ(spans[5].events[0].name, "first_token");
  EXPECT_NEAR(Since(spans[5].events[0].unix_nanoseconds), 6, 1e-6);
  EXPECT_EQ(NumberOf(spans[0], "gen_ai.usage.input_tokens"), 7);
  EXPECT_EQ(NumberOf(spans[0], "gen_ai.usage.output_tokens"), 5);
  EXPECT_EQ(std::get<std::vector<std::string>>(*Find(spans[0], "gen_ai.response.finish_reasons")),
            (std::vector<std::string>{"stop", "length"}));
  EXPECT_EQ(TextOf(spans[0], "c3po.gate"), "applied");
}

TEST_F(StageTraceTest, WithoutAnOptimizationThereIsNoSuchSpan) {
  Tokenized();
  report_.settings.method = Method::kNone;
  summary_.sequence.optimization_seconds = summary_.sequence.optimization_wait_seconds = 0;
  stages_.NoteReport(report_);
  End(absl::OkStatus());
  EXPECT_EQ(spans_.Names(), "tokenize queue prefill decode");
  EXPECT_EQ(TextOf(spans_.all()[0], "c3po.gate"), "none");
}

TEST_F(StageTraceTest, NeighborsThatAreFoundAfterPrefillAreAStageThere) {
  Tokenized();
  summary_.timings.optimization_seconds = 0.4;  // CallEnd has taken the search out of it.
  stages_.NoteReport(report_);
  End(absl::OkStatus());
  ASSERT_EQ(spans_.Names(), "tokenize queue prefill retrieve optimize decode");
  const std::vector<Span> spans = spans_.all();
  EXPECT_NEAR(Begin(spans[4]), 5, 1e-6);
  EXPECT_NEAR(End(spans[4]), 5.1, 1e-6);
  EXPECT_NEAR(Begin(spans[5]), 5.1, 1e-6);
  EXPECT_NEAR(End(spans[5]), 5.75, 1e-6);
}

TEST_F(StageTraceTest, OfACallThatFailsTheStageThatItHadReachedLastsToTheEnd) {
  const auto never_ran = [](SequenceTimings& engine) { engine.before_batch_seconds.reset(); };
  const auto in_prefill = [](SequenceTimings& engine) { engine.prefill_seconds = 0; };
  const auto in_optimization = [](SequenceTimings& engine) {
    engine.optimization_wait_seconds = engine.decode_seconds = 0;
    engine.optimized = true;
  };
  const auto in_decode = [](SequenceTimings&) {};
  const std::pair<std::function<void(SequenceTimings&)>, std::string> reached[] = {
      {never_ran, "tokenize queue"},
      {in_prefill, "tokenize queue prefill"},
      {in_optimization, "tokenize queue prefill optimize"},
      {in_decode, "tokenize queue prefill decode"}};
  for (const auto& [set, names] : reached) {
    CallSummary summary = summary_;
    set(summary.sequence);
    const auto trace = tracer_.Begin(std::nullopt, "call", arrival_);
    trace->AddStage("tokenize", arrival_, arrival_ + absl::Seconds(1));
    StageTrace(trace, arrival_).NoteEnd(absl::CancelledError("gone"), summary);
    trace->End(SteadyNow(), true, "");
    EXPECT_EQ(spans_.Names(), names);
    EXPECT_NEAR(End(spans_.all().back()), 10, 5) << names;
    EXPECT_GE(End(spans_.all().back()), 10) << names;
  }
}

TEST_F(StageTraceTest, OfACallThatNeverCameToTheEngineOnlyItsWorkIsTold) {
  summary_ = CallSummary();
  End(absl::CancelledError("gone"));
  EXPECT_EQ(spans_.Names(), "queue");
  const auto trace = tracer_.Begin(std::nullopt, "call", arrival_);
  TraceWork(trace.get(), "tokenize", arrival_ + absl::Seconds(4));
  StageTrace(trace, arrival_).NoteEnd(absl::InvalidArgumentError("prompt: too long"), summary_);
  trace->End(SteadyNow(), false, "");
  ASSERT_EQ(spans_.Names(), "queue tokenize");
  EXPECT_EQ(TextOf(spans_.all()[1], "c3po.queue"), "worker");
  EXPECT_NEAR(End(spans_.all()[1]), 4, 1e-6);
  EXPECT_NEAR(Begin(spans_.all()[2]), 4, 1e-6);
}

TEST_F(StageTraceTest, AWaitBetweenWorkIsAQueueAndWorkInSlicesIsNot) {
  TraceWork(trace_.get(), "render", SteadyNow() - absl::Seconds(9));
  TraceWork(trace_.get(), "tokenize", SteadyNow() + absl::Seconds(1));
  TraceWork(trace_.get(), "tokenize", SteadyNow() + absl::Seconds(2));
  TraceWork(trace_.get(), "embed", trace_->StagesEnd());
  trace_->End(SteadyNow(), false, "");
  EXPECT_EQ(spans_.Names(), "queue render queue tokenize embed");
}

TEST(StageTrace, OfACallThatIsNotTracedNothingIsDone) {
  StageTrace stages(nullptr, SteadyNow());
  stages.NoteReport(OptimizationReport());
  stages.NoteEnd(absl::OkStatus(), CallSummary());
  TraceWork(nullptr, "tokenize", SteadyNow());
  TraceRequest(GenerateCall(), ModelShape());
  TraceRequest(ScoreCall(), ModelShape());
}

// A whole pipeline over a model whose answers are made up.
class TracedPipelineTest : public MadeUpPipelineTest {
 protected:
  TracedPipelineTest() {
    model_.answers = true;
    parts_.workers = &workers_;
    context_.request_id = "r-1";
    context_.trace = tracer_.Begin(std::nullopt, "call", context_.arrival);
  }

  class Listener final : public GenerationListener {
   public:
    explicit Listener(TracedPipelineTest* test) : test_(test) {}
    void OnOptimization(const OptimizationReport&) override {}
    void OnChunk(TextChunk) override {}
    void OnScores(std::vector<ContinuationScore>) override {}
    void OnDone(const absl::Status& status, const CallSummary&) override {
      test_->status_ = status;
      test_->context_.trace->End(SteadyNow(), !status.ok(), status.message());
      test_->ended_.Notify();
    }

   private:
    TracedPipelineTest* const test_;
  };

  OptimizationSettings Settings() const {
    OptimizationSettings settings;
    settings.method = Method::kNone;
    settings.critical_layers = {2};
    settings.core_experts = 0;
    return settings;
  }

  Spans spans_;
  const Tracer tracer_{1, spans_.Taker()};
  CallContext context_;
  absl::Status status_;
  absl::Notification ended_;
  WorkerPool workers_{1, 64};
};

TEST_F(TracedPipelineTest, AnAnswersStagesLieInOrderWithinTheCall) {
  GenerationPipeline pipeline(parts_);
  GenerateCall call;
  call.context = context_;
  call.input = std::string("What is one and one?");
  call.sampling.max_tokens = 3;
  call.sampling.ignore_eos = true;
  call.optimization = Settings();
  ASSERT_TRUE(pipeline.Generate(std::move(call), std::make_shared<Listener>(this)).ok());
  ended_.WaitForNotification();
  ASSERT_TRUE(status_.ok()) << status_;
  ASSERT_EQ(spans_.Names(), "queue tokenize queue prefill decode");
  const std::vector<Span> spans = spans_.all();
  for (size_t i = 1; i < spans.size(); ++i) {
    const Span& before = spans[i > 1 ? i - 1 : 0];
    const int64_t earliest = i > 1 ? before.end_unix_nanoseconds : before.begin_unix_nanoseconds;
    EXPECT_GE(spans[i].begin_unix_nanoseconds, earliest - 1000) << spans[i].name;  // Seconds as double, rounded.
    EXPECT_GE(spans[i].end_unix_nanoseconds, spans[i].begin_unix_nanoseconds);
    EXPECT_LE(spans[i].end_unix_nanoseconds, spans[0].end_unix_nanoseconds) << spans[i].name;
  }
  EXPECT_EQ(TextOf(spans[0], "gen_ai.operation.name"), "text_completion");
  EXPECT_EQ(TextOf(spans[0], "gen_ai.response.id"), "r-1");
  EXPECT_EQ(NumberOf(spans[0], "gen_ai.request.max_tokens"), 3);
  EXPECT_EQ(NumberOf(spans[0], "gen_ai.usage.output_tokens"), 3);
  EXPECT_EQ(TextOf(spans[0], "c3po.method"), "none");
  for (const Span& span : spans) {
    for (const SpanAttribute& attribute : span.attributes) {
      const auto* text = std::get_if<std::string>(&attribute.value);
      EXPECT_TRUE(text == nullptr || text->find("one and one") == std::string::npos) << attribute.key;
    }
  }
}

TEST_F(TracedPipelineTest, ScoringIsDecodeAndTokenizingInSlicesOneStage) {
  GenerationPipeline pipeline(parts_);
  ScoreCall call;
  call.context = context_;
  call.input = std::string("What is one and one?");
  for (int i = 0; i < 3; ++i) call.continuations.push_back(absl::StrCat(" ", std::string(200'000, 'a'), i));
  call.optimization = Settings();
  ASSERT_TRUE(pipeline.Score(std::move(call), std::make_shared<Listener>(this)).ok());
  ended_.WaitForNotification();
  const std::string names = spans_.Names();
  EXPECT_EQ(names.substr(0, 14), "queue tokenize") << names;
  EXPECT_EQ(names.find("tokenize", 14), std::string::npos) << names;
  EXPECT_EQ(TextOf(spans_.all()[0], "gen_ai.operation.name"), "score");
  EXPECT_EQ(NumberOf(spans_.all()[0], "c3po.continuations"), 3);
}

TEST_F(TracedPipelineTest, ACallThatTheEngineNeverTookEndsInItsQueue) {
  engine_.Stop(absl::ZeroDuration());
  GenerationPipeline pipeline(parts_);
  GenerateCall call;
  call.context = context_;
  call.input = std::string("What is one and one?");
  call.optimization = Settings();
  ASSERT_TRUE(pipeline.Generate(std::move(call), std::make_shared<Listener>(this)).ok());
  ended_.WaitForNotification();
  EXPECT_TRUE(absl::IsUnavailable(status_)) << status_;
  const std::string names = spans_.Names();
  EXPECT_TRUE(names == "queue tokenize" || names == "queue tokenize queue") << names;
  EXPECT_TRUE(spans_.all()[0].failed);
}

}  // namespace
}  // namespace c3po
