// What a request's own code throws on the engine thread ends that request, and no other.
#include "server/scheduler/engine.h"

#include <gtest/gtest.h>

#include <memory>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "index/base/escaped_exception.h"
#include "tests/server/scheduler/scheduler_fakes.h"

namespace c3po {
namespace {

// Throws at the moment named, and hears of its end all the same.
class ThrowingSink final : public SequenceSink {
 public:
  enum class At { kToken, kScores, kFirstEnd };
  explicit ThrowingSink(At at) : at_(at) {}
  bool OnToken(const SampledToken&) override {
    if (at_ == At::kToken) throw std::bad_alloc();
    return true;
  }
  void OnScores(std::vector<ContinuationScore>) override {
    if (at_ == At::kScores) throw std::runtime_error("of the scores");
  }
  void OnFinished(const absl::Status& end, FinishReason, const SequenceTimings&) override {
    if (at_ == At::kFirstEnd && ends_++ == 0) throw std::bad_alloc();
    status = end;
    done.Notify();
  }
  absl::Status status;
  absl::Notification done;

 private:
  const At at_;
  int ends_ = 0;
};

class ThrowingTask final : public OptimizationTask {
 public:
  absl::StatusOr<bool> Step(int64_t) override { throw std::runtime_error("of the step"); }
  std::shared_ptr<const RoutingOverride> routing() const override { return nullptr; }
};

// Its Step would hide what its Ask threw.
class TaskThatThrowsWhenAsked final : public OptimizationTask {
 public:
  std::optional<Evaluation> Ask() const override { throw std::bad_alloc(); }
  absl::StatusOr<bool> Step(int64_t) override { return true; }
  std::shared_ptr<const RoutingOverride> routing() const override { return nullptr; }
};

SequenceRequest RequestFor(std::shared_ptr<SequenceSink> sink, bool scores) {
  SequenceRequest request;
  request.prompt = {1, 2, 3};
  request.sampling.max_tokens = 5;
  request.sampling.ignore_eos = true;
  if (scores) request.continuations = {{4, 5}};
  request.sink = std::move(sink);
  return request;
}

class EngineTest : public testing::Test {
 protected:
  // Another request, begun first, ends well.
  void ExpectThatOthersAreServed() {
    const auto other = std::make_shared<RecordingSink>();
    ASSERT_TRUE(engine_.Submit(RequestFor(other, /*scores=*/false)).ok());
    other->done.WaitForNotification();
    EXPECT_TRUE(other->status.ok()) << other->status;
    EXPECT_EQ(other->tokens.size(), 5U);
    EXPECT_EQ(engine_.pending(), 0);
  }

  HashModel model_;
  Engine engine_{&model_, BatcherLimits(), 16, nullptr};
};

TEST_F(EngineTest, WhatASinkThrowsEndsItsRequestAlone) {
  const int64_t before = EscapedExceptions(ThreadKind::kEngine);
  for (const auto at : {ThrowingSink::At::kToken, ThrowingSink::At::kScores, ThrowingSink::At::kFirstEnd}) {
    const auto sink = std::make_shared<ThrowingSink>(at);
    ASSERT_TRUE(engine_.Submit(RequestFor(sink, at == ThrowingSink::At::kScores)).ok());
    sink->done.WaitForNotification();
    EXPECT_EQ(absl::IsInternal(sink->status), at == ThrowingSink::At::kScores) << sink->status;
    EXPECT_EQ(absl::IsResourceExhausted(sink->status), at != ThrowingSink::At::kScores) << sink->status;
    ExpectThatOthersAreServed();
  }
  EXPECT_EQ(EscapedExceptions(ThreadKind::kEngine), before + 3);
}

TEST_F(EngineTest, WhatATaskOrItsBeginningThrowsEndsItsRequestAlone) {
  for (const bool at_beginning : {true, false}) {
    const auto sink = std::make_shared<RecordingSink>();
    SequenceRequest request = RequestFor(sink, /*scores=*/false);
    request.on_prefilled = [at_beginning](const PromptCapture&,
                                          const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
      if (at_beginning) throw std::runtime_error("of the beginning");
      return std::make_shared<ThrowingTask>();
    };
    ASSERT_TRUE(engine_.Submit(std::move(request)).ok());
    sink->done.WaitForNotification();
    EXPECT_TRUE(absl::IsInternal(sink->status)) << sink->status;
    ExpectThatOthersAreServed();
  }
}

TEST_F(EngineTest, WhatATaskThrowsWhenItIsAskedEndsItsRequestAlone) {
  const auto sink = std::make_shared<RecordingSink>();
  SequenceRequest request = RequestFor(sink, /*scores=*/false);
  request.on_prefilled = [](const PromptCapture&, const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
    return std::make_shared<TaskThatThrowsWhenAsked>();
  };
  ASSERT_TRUE(engine_.Submit(std::move(request)).ok());
  sink->done.WaitForNotification();
  EXPECT_TRUE(absl::IsResourceExhausted(sink->status)) << sink->status;
  ExpectThatOthersAreServed();
}

TEST_F(EngineTest, ASequenceIsToldWhatOfItsPromptWasInTheCache) {
  std::vector<int> cached;
  for (int i = 0; i < 2; ++i) {
    const auto sink = std::make_shared<RecordingSink>();
    SequenceRequest request = RequestFor(sink, /*scores=*/false);
    request.prompt.assign(3 * KvBlockPool::kPositions, 7);
    ASSERT_TRUE(engine_.Submit(std::move(request)).ok());
    sink->done.WaitForNotification();
    cached.push_back(sink->timings.cached_prompt_tokens);
  }
  EXPECT_EQ(cached, (std::vector<int>{0, 2 * KvBlockPool::kPositions}));  // The last block has the last token.
}

// Lets tokens pass until the third, and holds the engine there.
class HoldingSink final : public SequenceSink {
 public:
  bool OnToken(const SampledToken&) override {
    if (++tokens_ == 3) {
      held.Notify();
      go_on.WaitForNotification();
    }
    return true;
  }
  void OnScores(std::vector<ContinuationScore>) override {}
  void OnFinished(const absl::Status&, FinishReason, const SequenceTimings&) override { done.Notify(); }
  absl::Notification held, go_on, done;

 private:
  int tokens_ = 0;
};

TEST(EngineLoadTest, IsOfTheLastStepAndNothingOnceAllIsDone) {
  HashModel model;
  BatcherLimits limits;
  limits.sequences_max = 1;
  Engine engine(&model, limits, 16, nullptr);
  EXPECT_EQ(engine.load().running, 0);
  const auto holding = std::make_shared<HoldingSink>();
  const auto waiting = std::make_shared<RecordingSink>();
  SequenceRequest first = RequestFor(holding, /*scores=*/false);
  first.sampling.max_tokens = 10;
  ASSERT_TRUE(engine.Submit(std::move(first)).ok());
  ASSERT_TRUE(engine.Submit(RequestFor(waiting, /*scores=*/false)).ok());
  holding->held.WaitForNotification();
  const EngineLoad load = engine.load();
  EXPECT_EQ(load.running, 1);
  EXPECT_EQ(load.waiting, 1);
  EXPECT_GT(load.kv_tokens_used, 0);
  EXPECT_GE(load.tokens_per_second, 0);
  holding->go_on.Notify();
  holding->done.WaitForNotification();
  waiting->done.WaitForNotification();
  while (engine.load().running > 0) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(engine.load().waiting, 0);
  EXPECT_EQ(engine.load().waiting_tokens, 0);
  EXPECT_EQ(engine.load().kv_tokens_used, 0);
  EXPECT_GT(engine.load().tokens_per_second, 0);  // Of the last two seconds.
}

// Whose fault it is nobody knows: all that are in hand end, and those that come later are served.
class ThrowingModel final : public PartialModel {
 public:
  ThrowingModel() { shape_ = HashModel().shape(); }
  absl::Status Forward(absl::Span<const Segment> segments, std::vector<SegmentOutput>& outputs) override {
    if (throws.exchange(false)) throw std::bad_alloc();
    return model_.Forward(segments, outputs);
  }
  std::atomic<bool> throws{true};

 private:
  HashModel model_;
};

TEST(EngineOfAModelThatThrows, EndsWhatIsInHandAndServesWhatComesLater) {
  ThrowingModel model;
  Engine engine(&model, BatcherLimits(), 16, nullptr);
  const auto first = std::make_shared<RecordingSink>(), second = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine.Submit(RequestFor(first, /*scores=*/false)).ok());
  first->done.WaitForNotification();
  EXPECT_TRUE(absl::IsResourceExhausted(first->status)) << first->status;
  ASSERT_TRUE(engine.Submit(RequestFor(second, /*scores=*/false)).ok());
  second->done.WaitForNotification();
  EXPECT_TRUE(second->status.ok()) << second->status;
}

}  // namespace
}  // namespace c3po
