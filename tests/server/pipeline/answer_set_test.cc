#include "server/pipeline/answer_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "index/base/steady_time.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class RecordingListener final : public GenerationListener {
 public:
  void OnOptimization(const OptimizationReport&) override {}
  void OnChunk(TextChunk chunk) override {
    tokens[chunk.answer] += static_cast<int>(chunk.tokens.size());
    prompt_tokens = chunk.prompt_tokens;
    text += chunk.text;
    for (int t = 0; t < chunk.routes.tokens(); ++t) routed[chunk.answer].push_back(chunk.routes.first_position + t);
  }
  void OnRoutes(RoutedExperts routes) override { prompts.push_back(routes.tokens()); }
  void OnScores(std::vector<ContinuationScore> all) override { scores = std::move(all); }
  void OnDone(const absl::Status& s, const CallSummary& end) override {
    ++ends;
    status = s;
    summary = end;
  }
  std::map<int, int> tokens;
  std::map<int, std::vector<int>> routed;  // positions, by answer
  std::vector<int> prompts;                // tokens of each piece
  std::string text;
  int prompt_tokens = 0;
  std::vector<ContinuationScore> scores;
  int ends = 0;
  absl::Status status;
  CallSummary summary;
};

// Of a sequence that had a place in the batch.
SequenceTimings Ran() {
  SequenceTimings timings;
  timings.before_batch_seconds = 0;
  return timings;
}

class AnswerSetTest : public ::testing::Test {
 protected:
  // A set of `count` answers whose first is under way.
  void Begin(int count, const std::vector<std::string>& stop = {}) {
    const auto tokenizer =
        Tokenizer::Load(std::string(C3PO_SOURCE_DIR) + "/tests/golden/model/mixtral_tiny/tokenizer.json");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    std::vector<std::unique_ptr<IncrementalDetokenizer>> detokenizers;
    for (int i = 0; i < count; ++i) {
      auto detokenizer = IncrementalDetokenizer::Create(*tokenizer, stop, /*skip_special_tokens=*/true);
      ASSERT_TRUE(detokenizer.ok());
      detokenizers.push_back(std::make_unique<IncrementalDetokenizer>(*std::move(detokenizer)));
    }
    const auto set =
        std::make_shared<AnswerSet>(CallEnd(listener_, nullptr, summary_, arrival_, nullptr, {7, 30}),
                                    std::move(detokenizers), [this](int index, std::shared_ptr<SequenceSink> sink) {
                                      started_.push_back(index);
                                      sinks_.push_back(std::move(sink));
                                    });
    sinks_.push_back(set->FirstSink());
  }

  bool Token(int answer) {
    SampledToken token;
    token.token_id = 5;
    return sinks_[answer]->OnToken(token);
  }
  void End(int answer, const absl::Status& status = absl::OkStatus(), FinishReason reason = FinishReason::kLength) {
    sinks_[answer]->OnFinished(status, reason, Ran());
  }

  const std::shared_ptr<RecordingListener> listener_ = std::make_shared<RecordingListener>();
  std::vector<int> started_;
  std::vector<std::shared_ptr<SequenceSink>> sinks_;
  CallSummary summary_;
  absl::Time arrival_ = SteadyNow();
};

TEST_F(AnswerSetTest, StartsTheOthersOnceAtTheFirstTokenAndEndsWithTheLast) {
  Begin(3);
  EXPECT_THAT(started_, IsEmpty());
  EXPECT_TRUE(Token(0));
  EXPECT_THAT(started_, ElementsAre(1, 2));
  EXPECT_TRUE(Token(0));
  EXPECT_TRUE(Token(2));
  EXPECT_THAT(started_, ElementsAre(1, 2));
  End(0);
  End(2, absl::OkStatus(), FinishReason::kStop);
  EXPECT_EQ(listener_->ends, 0);
  End(1);
  ASSERT_EQ(listener_->ends, 1);
  EXPECT_TRUE(listener_->status.ok());
  EXPECT_EQ(listener_->tokens, (std::map<int, int>{{0, 2}, {2, 1}}));
  EXPECT_EQ(listener_->summary.cost, 7 + 3) << "the prompt, and of the room for 30 tokens what was generated";
  const CallSummary& summary = listener_->summary;
  ASSERT_EQ(summary.answers.size(), 3u);
  EXPECT_EQ(summary.answers[0].completion_tokens, 2);
  EXPECT_EQ(summary.answers[1].completion_tokens, 0);
  EXPECT_EQ(summary.answers[2].completion_tokens, 1);
  EXPECT_EQ(summary.answers[2].finish_reason, FinishReason::kStop);
  EXPECT_EQ(summary.finish_reason, FinishReason::kLength);
  EXPECT_EQ(summary.usage.completion_tokens, 3);
}

TEST_F(AnswerSetTest, TellsWhichStopStringEndedAnAnswerAndWhatWasCached) {
  summary_.usage.prompt_tokens = 40;
  Begin(1);
  Token(0);
  const std::string text = listener_->text;  // Of the token.
  ASSERT_FALSE(text.empty());
  EXPECT_EQ(listener_->prompt_tokens, 40);
  End(0);
  EXPECT_EQ(listener_->summary.answers[0].stop, std::nullopt);
  sinks_.clear();
  Begin(1, {"never so", text});
  EXPECT_FALSE(Token(0));
  SequenceTimings timings = Ran();
  timings.cached_prompt_tokens = 32;
  sinks_[0]->OnFinished(absl::OkStatus(), FinishReason::kStop, timings);
  EXPECT_EQ(listener_->summary.answers[0].stop, 1);
  EXPECT_EQ(listener_->summary.usage.cached_tokens, 32);
}

TEST_F(AnswerSetTest, AnEmptyFirstAnswerStartsTheOthersToo) {
  Begin(2);
  End(0, absl::OkStatus(), FinishReason::kStop);
  EXPECT_THAT(started_, ElementsAre(1));
  EXPECT_EQ(listener_->ends, 0);
  Token(1);
  End(1);
  EXPECT_EQ(listener_->ends, 1);
  EXPECT_EQ(listener_->summary.finish_reason, FinishReason::kStop);
}

TEST_F(AnswerSetTest, AFirstAnswerThatFailsBeforeItsFirstTokenStartsNoOthers) {
  Begin(3);
  End(0, absl::CancelledError("gone"));
  EXPECT_THAT(started_, IsEmpty());
  ASSERT_EQ(listener_->ends, 1);
  EXPECT_TRUE(absl::IsCancelled(listener_->status));
}

TEST_F(AnswerSetTest, WhatFailsInOneEndsTheOthersAtTheirNextToken) {
  Begin(3);
  Token(0);
  End(1, absl::InternalError("no logits"));
  EXPECT_FALSE(Token(0));
  End(0, absl::OkStatus(), FinishReason::kStop);
  EXPECT_FALSE(Token(2));
  EXPECT_EQ(listener_->ends, 0);
  End(2, absl::OkStatus(), FinishReason::kStop);
  ASSERT_EQ(listener_->ends, 1);
  EXPECT_EQ(listener_->status.message(), "no logits");
}

TEST_F(AnswerSetTest, StagesFollowEachOtherAndAddUpToTheWholeCall) {
  arrival_ = SteadyNow() - absl::Seconds(10);
  summary_.timings.tokenize_seconds = 0.5;
  summary_.timings.embed_seconds = 0.25;
  summary_.timings.retrieval_seconds = 0.25;
  SequenceTimings seen;
  seen.before_batch_seconds = 3;
  seen.prefill_seconds = 1;
  seen.optimization_seconds = 2;
  seen.optimization_wait_seconds = 1.5;
  seen.first_token_seconds = 0.25;
  seen.decode_seconds = 1;  // of the first answer; the second takes longer
  seen.time_to_first_token_seconds = 7.75;
  Begin(2);
  Token(0);
  sinks_[0]->OnFinished(absl::OkStatus(), FinishReason::kLength, seen);
  const double before = absl::ToDoubleSeconds(SteadyNow() - arrival_);
  End(1);
  const double after = absl::ToDoubleSeconds(SteadyNow() - arrival_);
  ASSERT_EQ(listener_->ends, 1);
  const StageTimings& all = listener_->summary.timings;
  EXPECT_DOUBLE_EQ(all.queue_seconds, 2);
  const double before_decode = all.queue_seconds + all.tokenize_seconds + all.embed_seconds + all.retrieval_seconds +
                               all.prefill_seconds + all.optimization_seconds + all.optimization_wait_seconds;
  EXPECT_DOUBLE_EQ(before_decode + all.first_token_seconds, all.time_to_first_token_seconds);
  EXPECT_GE(before_decode + all.decode_seconds, before - 1e-9);
  EXPECT_LE(before_decode + all.decode_seconds, after + 1e-9);
}

TEST_F(AnswerSetTest, OneAnswerIsASetOfOne) {
  Begin(1);
  EXPECT_TRUE(Token(0));
  End(0);
  EXPECT_THAT(started_, IsEmpty());
  ASSERT_EQ(listener_->ends, 1);
  EXPECT_EQ(listener_->summary.answers.size(), 1u);
}

TEST(ChoiceSink, AnswersWithTheLikeliestPerTokenAndTheFirstOfEquals) {
  const auto choose = [](std::vector<ContinuationScore> scores, std::shared_ptr<RecordingListener> listener) {
    ChoiceSink sink(CallEnd(listener, nullptr, CallSummary(), SteadyNow(), nullptr, {7, 4}),
                    {" no", " yes indeed", " so"}, {{1}, {2, 3}, {4}});
    sink.OnScores(std::move(scores));
    EXPECT_EQ(listener->ends, 0);
    sink.OnFinished(absl::OkStatus(), FinishReason::kStop, Ran());
    return listener;
  };
  // Two tokens of -1.5 each are likelier than one of -2, though their sum is not.
  auto listener =
      choose({{-2, false, {-2}}, {-3, true, {-1.5F, -1.5F}}, {-4, false, {-4}}}, std::make_shared<RecordingListener>());
  EXPECT_EQ(listener->text, " yes indeed");
  EXPECT_EQ(listener->tokens[0], 2);
  EXPECT_EQ(listener->summary.chosen, 1);
  EXPECT_EQ(listener->summary.usage.completion_tokens, 2);
  EXPECT_EQ(listener->summary.cost, 7 + 4) << "all choices were scored";
  ASSERT_EQ(listener->summary.answers.size(), 1u);
  EXPECT_EQ(listener->summary.answers[0].completion_tokens, 2);
  EXPECT_EQ(listener->scores.size(), 3u);
  EXPECT_EQ(listener->ends, 1);
  listener = choose({{-2, true, {-2}}, {-4, true, {-2, -2}}, {-2, true, {-2}}}, std::make_shared<RecordingListener>());
  EXPECT_EQ(listener->summary.chosen, 0);
}

RoutedExperts Routes(int position, int tokens) {
  RoutedExperts routes{position, 1, 2, {}, {}};
  routes.ResizeTo(position + tokens);
  return routes;
}

// A token's experts are known when its pass has run, and go out with the next one, or at the end.
TEST_F(AnswerSetTest, RoutesGoOutWithTheNextChunkAndThePromptsByThemselves) {
  summary_.usage.prompt_tokens = 7;
  Begin(2);
  sinks_[0]->OnRoutes(Routes(0, 7));
  Token(0);
  EXPECT_TRUE(listener_->routed[0].empty());
  sinks_[0]->OnRoutes(Routes(7, 1));
  Token(0);
  Token(1);
  sinks_[0]->OnRoutes(Routes(8, 1));  // An end token followed.
  sinks_[1]->OnRoutes(Routes(7, 1));
  End(0);
  Token(1);
  End(1);
  EXPECT_THAT(listener_->prompts, ElementsAre(7));
  EXPECT_THAT(listener_->routed[0], ElementsAre(7, 8));
  EXPECT_THAT(listener_->routed[1], ElementsAre(7));
  EXPECT_EQ(listener_->ends, 1);
}

TEST(ChoiceSink, TellsTheRoutesOfTheChosenOneAlone) {
  const auto listener = std::make_shared<RecordingListener>();
  ChoiceSink sink(CallEnd(listener, nullptr, CallSummary(), SteadyNow(), nullptr, {7, 3}), {" no", " yes"},
                  {{1, 3}, {2, 3}});
  std::vector<ContinuationScore> scores = {{-2, true, {-1, -1}}, {-1, true, {-0.5, -0.5}}};
  scores[0].routes = Routes(7, 1);
  scores[1].routes = Routes(7, 1);
  sink.OnRoutes(Routes(0, 7));
  sink.OnScores(scores);
  sink.OnFinished(absl::OkStatus(), FinishReason::kStop, Ran());
  EXPECT_THAT(listener->prompts, ElementsAre(7));
  EXPECT_THAT(listener->routed[0], ElementsAre(7));
  for (const ContinuationScore& score : listener->scores) EXPECT_TRUE(score.routes.empty());
}

TEST(ChoiceSink, ChoosesByTheLabelOffsetWhereThereIsOne) {
  const auto listener = std::make_shared<RecordingListener>();
  ChoiceSink sink(CallEnd(listener, nullptr, CallSummary(), SteadyNow(), nullptr, {7, 3}), {" no", " yes"}, {{1}, {2}},
                  LabelOffset{0.5, {-1, 1}});
  sink.OnScores({{-2, true, {-2}}, {-4, false, {-4}}});
  sink.OnFinished(absl::OkStatus(), FinishReason::kStop, Ran());
  EXPECT_EQ(listener->text, " yes");
  EXPECT_EQ(listener->summary.chosen, 1);
  ASSERT_EQ(listener->scores.size(), 2u);
  EXPECT_EQ(listener->scores[0].offset_score, -2);
  EXPECT_EQ(listener->scores[1].offset_score, -1);
  EXPECT_EQ(listener->scores[1].log_likelihood, -4) << "the model's own stays beside it";
}

TEST(ScoreSink, TellsTheLabelOffsetsScores) {
  const auto listener = std::make_shared<RecordingListener>();
  ScoreSink sink(CallEnd(listener, nullptr, CallSummary(), SteadyNow(), nullptr, {7, 3}), LabelOffset{2, {-1, 1}});
  sink.OnScores({{-4, true, {-1, -3}}, {-4, false, {-4}}});
  ASSERT_EQ(listener->scores.size(), 2u);
  EXPECT_EQ(listener->scores[0].offset_score, -5);
  EXPECT_EQ(listener->scores[1].offset_score, -7);
  sink.OnFinished(absl::OkStatus(), FinishReason::kStop, Ran());
}

}  // namespace
}  // namespace c3po
