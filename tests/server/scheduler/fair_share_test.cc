// What one caller asks for, however much it is, leaves others their part of places, cache, passes and optimization.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "server/scheduler/continuous_batcher.h"
#include "server/scheduler/step_plan.h"
#include "tests/server/scheduler/scheduler_fakes.h"

namespace c3po {
namespace {

class FairShare : public testing::Test {
 protected:
  std::shared_ptr<RecordingSink> Add(const std::string& caller, const Wanted& wanted) {
    auto sink = std::make_shared<RecordingSink>();
    SequenceRequest request = MakeRequest(wanted, sink);
    request.caller = caller;
    batcher().Add(std::move(request));
    return sink;
  }
  void Steps(int count) {
    for (int i = 0; i < count; ++i) batcher().Step();
  }
  void NewBatcher() { batcher_.reset(); }
  ContinuousBatcher& batcher() {
    if (!batcher_) {
      model_ = std::make_unique<HashModel>();
      batcher_ = std::make_unique<ContinuousBatcher>(model_.get(), limits, nullptr, [this] { return model_->now; });
    }
    return *batcher_;
  }
  HashModel& model() {
    batcher();
    return *model_;
  }
  void TearDown() override {
    batcher().AbortAll(absl::CancelledError("the test ends"));
    EXPECT_EQ(batcher().kv_tokens_used(), 0);
  }
  BatcherLimits limits;

 private:
  std::unique_ptr<HashModel> model_;
  std::unique_ptr<ContinuousBatcher> batcher_;
};

TEST_F(FairShare, APlaceIsKeptForACallerThatHasNone) {
  limits.sequences_max = 3;
  for (int i = 0; i < 20; ++i) Add("ann", {{1, 2}, 1000, nullptr});
  Steps(3);
  EXPECT_EQ(batcher().running(), 3);
  const auto ben = Add("ben", {{3}, 5, nullptr});
  const auto second = Add("ben", {{4}, 5, nullptr});
  Steps(5);
  EXPECT_EQ(ben->finished_count, 1);
  Steps(6);
  EXPECT_EQ(second->finished_count, 1);
  EXPECT_EQ(batcher().running(), 3);
}

TEST_F(FairShare, ACallerThatHasNoneGetsCacheBackFromOneThatHoldsTooMuch) {
  limits.kv_tokens_max = 20 * KvBlockPool::kPositions;
  std::vector<std::shared_ptr<RecordingSink>> crowd;
  const Wanted large{std::vector<int32_t>(4 * KvBlockPool::kPositions, 1), 30, nullptr};
  for (int i = 0; i < 8; ++i) {
    Wanted own = large;
    own.prompt[0] = i;
    crowd.push_back(Add("ann", own));
  }
  Steps(3);
  const auto preempted = batcher().preemptions();
  const auto ben = Add("ben", {std::vector<int32_t>(6 * KvBlockPool::kPositions, 7), 4, nullptr});
  Steps(6);
  EXPECT_EQ(ben->finished_count, 1);
  EXPECT_GT(batcher().preemptions(), preempted);
  while (batcher().Step()) {
  }
  for (int i = 0; i < 8; ++i) {
    Wanted own = large;
    own.prompt[0] = i;
    EXPECT_EQ(crowd[static_cast<size_t>(i)]->tokens, RunAlone(own)->tokens);
  }
}

// Where not all fit, the one that came takes the blocks of the one that runs, who takes them back, and so on.
TEST_F(FairShare, CallersOfOneSequenceEachDoNotTakeTheCacheFromOneAnother) {
  limits.kv_tokens_max = 10 * KvBlockPool::kPositions;
  limits.prefill_tokens_per_step = 32;
  for (const int callers : {2, 3, 5, 9}) {
    for (const int blocks : {3, 5, 6, 9}) {
      NewBatcher();
      const size_t length = static_cast<size_t>(blocks) * KvBlockPool::kPositions - 4;
      std::vector<Wanted> wanted;
      std::vector<std::shared_ptr<RecordingSink>> sinks;
      for (int i = 0; i < callers; ++i) {
        wanted.push_back({std::vector<int32_t>(length, i), 20, nullptr});
        sinks.push_back(Add(std::string(1, static_cast<char>('a' + i)), wanted.back()));
      }
      // One after the other: a step for every 32 tokens and every token, and some more.
      const int steps_max = callers * (blocks + 20 + 10);
      Steps(steps_max);
      for (size_t i = 0; i < sinks.size(); ++i) {
        EXPECT_EQ(sinks[i]->finished_count, 1) << callers << " callers of " << blocks << " blocks each";
        if (blocks != 9) continue;
        EXPECT_EQ(sinks[i]->tokens, RunAlone(wanted[i])->tokens);
      }
      batcher().AbortAll(absl::CancelledError("the next ones come"));
    }
  }
}

TEST_F(FairShare, EachCallerHasThePartOfAPassThatItNeeds) {
  limits.prefill_tokens_per_step = 64;
  for (int i = 0; i < 10; ++i) Add("ann", {std::vector<int32_t>(600, i), 1, nullptr});
  Steps(2);
  const auto ben = Add("ben", {std::vector<int32_t>(30, 20), 1, nullptr});
  Steps(1);
  EXPECT_EQ(ben->finished_count, 1) << "30 tokens of 64 are less than half";
  // And what ben does not need is ann's again: 6,000 tokens in all.
  int steps = 3;
  for (; batcher().Step(); ++steps) {
  }
  EXPECT_LE(steps, (6000 + 30) / 64 + 6);
}

TEST_F(FairShare, EachCallerHasThePartOfTheOptimization) {
  model().per_evaluation = absl::Milliseconds(10);
  Wanted heavy{{1}, 1, Routing(2), ApplicationRule::kEveryNewToken, 50};
  heavy.asks = true;
  heavy.rows = kEvaluationRowsMax;  // No two in one pass.
  for (int i = 0; i < 10; ++i) Add("ann", heavy);
  Steps(30);
  const size_t before = model().passes.size();
  heavy.optimization_steps = 10;
  const auto ben = Add("ben", heavy);
  while (ben->finished_count == 0 && batcher().Step()) {
  }
  EXPECT_LE(model().passes.size() - before, 10u * 2 + 3);
}

// What waits for the memory of a sequence that was preempted must not keep it from its place.
TEST_F(FairShare, WhatWasPreemptedWithItsMemoryGoesOnBeforeWhatWaitsForThat) {
  limits.sequences_max = 1;
  limits.kv_tokens_max = 6 * KvBlockPool::kPositions;
  limits.work_memory_bytes = 100;
  model().per_forward = absl::Milliseconds(10);
  const auto add = [&](Priority priority) {
    auto sink = std::make_shared<RecordingSink>();
    SequenceRequest request =
        MakeRequest({std::vector<int32_t>(3 * KvBlockPool::kPositions - 4, 1), 4, Routing(1)}, sink);
    request.caller = "ann";
    request.priority = priority;
    request.on_prefilled = [this](const PromptCapture&, const Readout&) {
      auto task = std::make_shared<CountdownTask>(100, Routing(1));
      task->bytes = 80;
      task->on_step = [this] { model().now += absl::Seconds(1); };
      return absl::StatusOr<std::shared_ptr<OptimizationTask>>(task);
    };
    batcher().Add(std::move(request));
    return sink;
  };
  const Wanted grows{{3}, 5 * KvBlockPool::kPositions, nullptr};
  const auto stream = Add("ben", grows);
  const auto preempted = add(Priority::kNormal);
  Steps(5);
  EXPECT_EQ(batcher().running(), 2);
  const auto waits = add(Priority::kHigh);
  Steps(1000);
  EXPECT_GT(batcher().preemptions(), 0);
  EXPECT_EQ(stream->finished_count, 1);
  EXPECT_EQ(preempted->finished_count, 1);
  EXPECT_EQ(waits->finished_count, 1);
}

// Rows of which the results are known run again where their keys and values were given back.
TEST(FairShareOfAPass, AContinuationThatRunsAgainHasAllTheRowsThatItNeeds) {
  KvBlockPool pool(64);
  std::vector<std::unique_ptr<Sequence>> running;
  running.push_back(std::make_unique<Sequence>());
  Sequence& sequence = *running.back();
  sequence.request.prompt = sequence.tokens = {1, 2};
  sequence.request.continuations = {std::vector<int32_t>(300, 5)};
  sequence.stage = Sequence::Stage::kScore;
  sequence.cached = 2;
  sequence.blocks = {*pool.Take(-1)};
  sequence.scores.resize(1);
  sequence.scores[0].token_logprobs.assign(299, -1.0f);
  StepPlan plan;
  PlanStep(running, 100, pool, plan);
  ASSERT_EQ(plan.segments.size(), 1u);
  EXPECT_EQ(plan.segments[0].tokens.size(), 100u);
}

TEST_F(FairShare, LearningTakesNoPlaceOfRequests) {
  limits.sequences_max = 1;
  std::vector<std::shared_ptr<RecordingSink>> learning;
  for (int i = 0; i < 3; ++i) {
    learning.push_back(std::make_shared<RecordingSink>());
    SequenceRequest request = MakeRequest({{1}, 1, Routing(1), ApplicationRule::kEveryNewToken, 500}, learning.back());
    request.learning = true;
    request.caller = "ann";
    batcher().Add(std::move(request));
  }
  Steps(4);
  EXPECT_EQ(batcher().running(), 3);
  const auto request = Add("ann", {{5}, 4, nullptr});
  Steps(6);
  EXPECT_EQ(request->finished_count, 1);
  for (const auto& sink : learning) EXPECT_EQ(sink->finished_count, 0);
}

}  // namespace
}  // namespace c3po
