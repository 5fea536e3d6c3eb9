// Answers that have to have a form, in the batcher.

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/scheduler/scheduler_fakes.h"

namespace c3po {
namespace {

// Answers of `length` tokens, each congruent modulo 5 to the sum of those before it and `start`: what is allowed
// depends on all that was accepted. From `may_end_from` tokens on the end token is allowed too. One matcher is asked of
// one state in one order, whatever the batcher does.
class SumForm final : public CompiledForm {
 public:
  explicit SumForm(int start, int length = 1 << 20, int may_end_from = 1 << 20)
      : start_(start), length_(length), may_end_from_(may_end_from) {}

  class Matcher final : public TokenMatcher {
   public:
    Matcher(const SumForm& form, bool may_end) : form_(form), may_end_(may_end), sum_(form.start_) {}
    absl::StatusOr<absl::Span<const uint32_t>> NextTokens() override {
      if (accepted_ == form_.fails_at) return absl::ResourceExhaustedError("structured_output: too slow");
      bits_.assign((kVocabulary + 31) / 32, 0);
      for (int id = 0; id < kEndToken; ++id) {
        if (id % 5 == sum_ % 5) bits_[static_cast<size_t>(id / 32)] |= 1U << (id % 32);
      }
      if (may_end_ && accepted_ >= form_.may_end_from_) bits_[kEndToken / 32] |= 1U << (kEndToken % 32);
      return absl::Span<const uint32_t>(bits_);
    }
    absl::Status Accept(int32_t token) override {
      if (token % 5 != sum_ % 5) return absl::InternalError("structured_output: not allowed");
      sum_ += token + 1;
      ++accepted_;
      return absl::OkStatus();
    }
    absl::StatusOr<bool> IsAtEnd() override { return accepted_ == form_.length_; }

   private:
    const SumForm& form_;
    const bool may_end_;
    int sum_, accepted_ = 0;
    std::vector<uint32_t> bits_;
  };

  std::unique_ptr<TokenMatcher> NewMatcher(bool may_end) const override {
    return std::make_unique<Matcher>(*this, may_end);
  }
  int64_t bytes() const override { return 0; }
  bool Holds(const std::vector<int32_t>& tokens) const {
    int sum = start_;
    for (const int32_t token : tokens) {
      if (token % 5 != sum % 5) return false;
      sum += token + 1;
    }
    return true;
  }
  int fails_at = -1;

 private:
  const int start_, length_, may_end_from_;
};

std::shared_ptr<RecordingSink> RunForm(const Wanted& wanted, const std::shared_ptr<SumForm>& form,
                                       double temperature = 0, bool ignore_eos = false) {
  HashModel model;
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
  auto sink = std::make_shared<RecordingSink>();
  SequenceRequest request = MakeRequest(wanted, sink);
  request.form = form;
  request.sampling.temperature = temperature;
  request.sampling.ignore_eos = ignore_eos;
  batcher.Add(std::move(request));
  while (batcher.Step()) {
  }
  return sink;
}

TEST(Forms, AnAnswerEndsWhereItsFormDoes) {
  Wanted wanted;
  wanted.prompt = {1, 2, 3};
  wanted.max_tokens = 20;
  const auto form = std::make_shared<SumForm>(0, 7);
  const auto sink = RunForm(wanted, form);
  ASSERT_TRUE(sink->status.ok()) << sink->status;
  EXPECT_EQ(sink->tokens.size(), 7u);
  EXPECT_TRUE(form->Holds(sink->tokens));
  EXPECT_EQ(sink->reason, FinishReason::kStop);
}

TEST(Forms, WhatIsWholeWithTheLastTokenIsNotCut) {
  Wanted wanted;
  wanted.prompt = {1, 2, 3};
  wanted.max_tokens = 7;
  EXPECT_EQ(RunForm(wanted, std::make_shared<SumForm>(0, 7))->reason, FinishReason::kStop);
  EXPECT_EQ(RunForm(wanted, std::make_shared<SumForm>(0, 8))->reason, FinishReason::kLength);
}

TEST(Forms, TheEndTokenComesWhereTheFormAllowsIt) {
  Wanted wanted;
  wanted.prompt = {1, 2, 3};
  wanted.max_tokens = 200;
  int ended = 0;
  for (int start = 0; start < 5; ++start) {
    wanted.prompt[0] = start;
    const auto form = std::make_shared<SumForm>(start, 1 << 20, 4);
    const auto sink = RunForm(wanted, form, 50);
    ASSERT_TRUE(sink->status.ok()) << sink->status;
    EXPECT_GE(sink->tokens.size(), 4u);
    EXPECT_TRUE(form->Holds(sink->tokens));
    ended += sink->reason == FinishReason::kStop ? 1 : 0;
    EXPECT_EQ(RunForm(wanted, form, 50, /*ignore_eos=*/true)->tokens.size(), 200u);
  }
  EXPECT_GT(ended, 0);
}

TEST(Forms, AMatcherThatFailsEndsItsAnswerAlone) {
  Wanted wanted;
  wanted.prompt = {1, 2, 3};
  const auto form = std::make_shared<SumForm>(0);
  form->fails_at = 3;
  const auto sink = RunForm(wanted, form);
  EXPECT_EQ(sink->status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(sink->tokens.size(), 3u);
  form->fails_at = 0;
  EXPECT_EQ(RunForm(wanted, form)->tokens.size(), 0u);
}

// Sequences join, run out of blocks, are preempted and run again, with pathways that are kept or taken back: each gets
// what it gets alone, and its form holds.
TEST(Forms, HoldInRandomSchedules) {
  int64_t preemptions = 0;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    BatcherLimits limits;
    limits.sequences_max = 1 + static_cast<int>(rng() % 8);
    limits.prefill_tokens_per_step = 1 + static_cast<int>(rng() % 70);
    limits.kv_tokens_max = (10 + static_cast<int64_t>(rng() % 5)) * KvBlockPool::kPositions;
    HashModel model(limits.kv_tokens_max);
    ContinuousBatcher batcher(&model, limits, nullptr);
    struct Case {
      Wanted wanted;
      std::shared_ptr<SumForm> form;
      double temperature;
      std::shared_ptr<RecordingSink> sink;
    };
    std::vector<Case> cases;
    for (int i = 0; i < 10; ++i) {
      Wanted w;
      for (uint32_t t = 40 + rng() % 80; t > 0; --t) w.prompt.push_back(static_cast<int32_t>(rng() % 48));
      w.max_tokens = 1 + static_cast<int>(rng() % 100);
      if (rng() % 2 > 0) w.routing = Routing(static_cast<float>(i));
      w.accepts = rng() % 3 > 0;
      const auto form = std::make_shared<SumForm>(static_cast<int>(rng() % 5), 1 + static_cast<int>(rng() % 150),
                                                  rng() % 2 == 0 ? 5 : 1 << 20);
      Case one{w, form, rng() % 2 == 0 ? 0.0 : 3.0, std::make_shared<RecordingSink>()};
      SequenceRequest request = MakeRequest(w, one.sink);
      request.form = form;
      request.sampling.temperature = one.temperature;
      batcher.Add(std::move(request));
      cases.push_back(std::move(one));
      if (rng() % 3 == 0) batcher.Step();
    }
    while (batcher.Step()) {
    }
    preemptions += batcher.preemptions();
    for (const Case& one : cases) {
      const auto alone = RunForm(one.wanted, one.form, one.temperature);
      ASSERT_TRUE(one.sink->status.ok()) << one.sink->status;
      EXPECT_EQ(one.sink->tokens, alone->tokens);
      EXPECT_EQ(one.sink->reason, alone->reason);
      EXPECT_TRUE(one.form->Holds(one.sink->tokens));
    }
  }
  EXPECT_GT(preemptions, 20);
}

}  // namespace
}  // namespace c3po
