#include "server/scheduler/continuous_batcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "index/base/steady_time.h"
#include "server/scheduler/engine.h"
#include "server/scheduler/optimization_unit.h"
#include "tests/server/scheduler/scheduler_fakes.h"

namespace c3po {
namespace {

// Sequences join, leave, are cancelled, share beginnings, run out of blocks and are preempted, generate and score, with
// and without a pathway that is found alone or together with others': what comes of each is what comes of it alone.
TEST(ContinuousBatcher, TwoHundredRandomSchedulesGiveEachSequenceWhatItGetsAlone) {
  int64_t preemptions = 0, shared = 0, joint_passes = 0, cut_evaluations = 0;
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    BatcherLimits limits;
    limits.sequences_max = 1 + static_cast<int>(rng() % 8);
    limits.prefill_tokens_per_step = 1 + static_cast<int>(rng() % 70);
    limits.kv_tokens_max = (10 + static_cast<int64_t>(rng() % 5)) * KvBlockPool::kPositions;
    HashModel model(limits.kv_tokens_max);
    model.per_forward = absl::Milliseconds(1);
    model.per_evaluation = absl::Microseconds(500);
    // Each look at the clock takes a moment, so that shares of time do not depend on the machine's.
    ContinuousBatcher batcher(&model, limits, nullptr, [&] { return model.now += absl::Microseconds(20); });
    std::vector<int32_t> beginning(80);
    for (int32_t& token : beginning) token = static_cast<int32_t>(rng() % 48);
    struct Case {
      Wanted wanted;
      std::shared_ptr<RecordingSink> sink;
      std::shared_ptr<std::atomic<bool>> cancelled;
    };
    std::vector<Case> cases;
    for (int i = 0; i < 14; ++i) {
      Wanted w;
      if (rng() % 2 == 0) w.prompt.assign(beginning.begin(), beginning.begin() + static_cast<int>(rng() % 80));
      for (uint32_t t = 0; t <= rng() % 50; ++t) w.prompt.push_back(static_cast<int32_t>(rng() % 48));
      w.max_tokens = 1 + static_cast<int>(rng() % 100);
      if (rng() % 3 > 0) w.routing = Routing(static_cast<float>(i));
      w.rule = static_cast<ApplicationRule>(rng() % 3);
      w.optimization_steps = 1 + static_cast<int>(rng() % 5);
      w.accepts = rng() % 4 > 0;
      w.asks = rng() % 4 > 0;
      w.rows = 1 + static_cast<int64_t>(rng() % (rng() % 4 == 0 ? 400 : 20));
      if (rng() % 3 == 0) w.prompt_positions = 1 + static_cast<int>(rng() % 150);
      for (uint32_t c = 0; rng() % 3 == 0 && c < 3; ++c) {
        w.continuations.emplace_back();
        for (uint32_t t = 0; t <= rng() % 40; ++t) w.continuations.back().push_back(static_cast<int32_t>(rng() % 48));
      }
      Case one{w, std::make_shared<RecordingSink>(), std::make_shared<std::atomic<bool>>(false)};
      SequenceRequest request = MakeRequest(w, one.sink);
      request.cancelled = one.cancelled;
      batcher.Add(std::move(request));
      cases.push_back(std::move(one));
      for (uint32_t s = 0; s < rng() % 6; ++s) batcher.Step();
      if (rng() % 6 == 0) *cases[rng() % cases.size()].cancelled = true;
    }
    while (batcher.Step()) {
    }
    for (size_t i = 0; i < cases.size(); ++i) {
      SCOPED_TRACE(testing::Message() << "sequence " << i);
      EXPECT_EQ(cases[i].sink->finished_count, 1);
      const std::shared_ptr<RecordingSink> alone = RunAlone(cases[i].wanted);
      if (cases[i].sink->status.ok()) {
        EXPECT_EQ(cases[i].sink->tokens, alone->tokens);
        EXPECT_EQ(LogprobsOf(*cases[i].sink), LogprobsOf(*alone));
      } else {
        EXPECT_TRUE(*cases[i].cancelled) << cases[i].sink->status;
        EXPECT_LE(cases[i].sink->tokens.size(), alone->tokens.size());
      }
    }
    EXPECT_EQ(batcher.kv_tokens_used(), 0);
    preemptions += batcher.preemptions();
    shared += batcher.prefix_hit_tokens();
    for (const auto& pass : model.passes) joint_passes += pass.size() > 1;
    cut_evaluations += model.parts.size() > model.passes.size();
    EXPECT_LE(model.most_rows, limits.prefill_tokens_per_step + kUncutRows + limits.sequences_max);
  }
  EXPECT_GT(cut_evaluations, 50);
  EXPECT_GT(joint_passes, 100);
  EXPECT_GT(preemptions, 50);
  EXPECT_GT(shared, 10000);
}

TEST(ContinuousBatcher, ARepeatedPromptIsPrefilledFromItsLastWholeBlock) {
  HashModel model;
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
  std::vector<int32_t> prompt(100);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(i % 48);
  for (const bool again : {false, true}) {
    auto sink = std::make_shared<RecordingSink>();
    batcher.Add(MakeRequest({prompt, 3, nullptr}, sink));
    model.most_rows = 0;
    while (batcher.Step()) {
    }
    EXPECT_EQ(model.most_rows, again ? 4 : 100);
    EXPECT_EQ(sink->tokens, RunAlone({prompt, 3, nullptr})->tokens);
  }
  EXPECT_EQ(batcher.prefix_hit_tokens(), 96);
}

// In chunks, with what another left of it in the cache, and after its blocks were taken back: always the same.
TEST(ContinuousBatcher, APromptsLogprobsAreToldOnceWhateverTheSchedule) {
  std::vector<int32_t> prompt(100);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(i * 7 % 48);
  std::vector<SampledToken> first;
  for (const int chunk : {256, 256, 7}) {
    HashModel model;
    BatcherLimits limits;
    limits.prefill_tokens_per_step = chunk;
    ContinuousBatcher batcher(&model, limits, nullptr);
    for (const bool before : {true, false}) {  // A plain request leaves the prompt's blocks in the cache.
      auto sink = std::make_shared<RecordingSink>();
      SequenceRequest request = MakeRequest({prompt, 3, nullptr}, sink);
      if (!before) request.sampling.prompt_logprobs = 2;
      batcher.Add(std::move(request));
      while (batcher.Step()) {
      }
      ASSERT_TRUE(sink->status.ok()) << sink->status;
      EXPECT_EQ(sink->tokens, RunAlone({prompt, 3, nullptr})->tokens);
      ASSERT_EQ(sink->prompt.size(), before ? 0 : prompt.size());
      if (before) continue;
      EXPECT_TRUE(sink->prompt[0].top_logprobs.empty());
      for (size_t i = 0; i < prompt.size(); ++i) {
        const SampledToken& token = sink->prompt[i];
        EXPECT_EQ(token.token_id, prompt[i]);
        if (i == 0) continue;
        ASSERT_EQ(token.top_logprobs.size(), 2u);
        EXPECT_LT(token.logprob, 0);
        EXPECT_LE(token.logprob, token.top_logprobs[0].logprob);
        if (!first.empty()) {
          EXPECT_EQ(token.logprob, first[i].logprob);
          EXPECT_EQ(token.top_logprobs[0].token_id, first[i].top_logprobs[0].token_id);
        }
      }
      first = sink->prompt;
    }
  }
}

TEST(ContinuousBatcher, APromptWhoseLogprobsAreNoNumbersFails) {
  HashModel model;
  model.bad_token = 5;
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
  auto sink = std::make_shared<RecordingSink>();
  SequenceRequest request = MakeRequest({{5, 2, 3}, 3, nullptr}, sink);
  request.sampling.prompt_logprobs = 0;
  batcher.Add(std::move(request));
  while (batcher.Step()) {
  }
  EXPECT_EQ(sink->status.code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(sink->prompt.empty());
}

TEST(ContinuousBatcher, ContinuationsOfAPromptAreScoredInOnePass) {
  HashModel model;
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
  auto sink = std::make_shared<RecordingSink>();
  SequenceRequest request = MakeRequest({{1, 2, 3}, 1, nullptr}, sink);
  for (int32_t c = 0; c < 10; ++c) request.continuations.push_back({c, c, c});
  batcher.Add(std::move(request));
  while (batcher.Step()) {
  }
  EXPECT_EQ(model.forwards, 2);
  EXPECT_EQ(sink->scores.size(), 10u);
}

// By its prompt, by a continuation behind its first token, or by a pathway; beside one that is none of it.
TEST(ContinuousBatcher, WhatTheModelGivesNoNumbersForFailsAlone) {
  HashModel model;
  model.bad_token = 40;
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
  std::vector<std::shared_ptr<RecordingSink>> bad;
  const auto add = [&](std::vector<int32_t> prompt, std::vector<std::vector<int32_t>> continuations,
                       std::shared_ptr<const RoutingOverride> routing) {
    bad.push_back(std::make_shared<RecordingSink>());
    SequenceRequest request = MakeRequest({std::move(prompt), 3, std::move(routing)}, bad.back());
    request.continuations = std::move(continuations);
    batcher.Add(std::move(request));
  };
  for (const auto& routing : {std::shared_ptr<RoutingOverride>(), Routing(5)}) {
    add({1, 40, 2}, {}, routing);
    add({1, 40, 2}, {{3}, {4, 5}}, routing);
    add({1, 2}, {{3}, {4, 40, 5}}, routing);
  }
  add({1, 2}, {}, Routing(HashModel::kBadWeight));
  add({1, 2}, {{3}, {4}}, Routing(HashModel::kBadWeight));
  auto good = std::make_shared<RecordingSink>();
  batcher.Add(MakeRequest({{1, 2, 3}, 4, nullptr}, good));
  while (batcher.Step()) {
  }
  for (size_t i = 0; i < bad.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "request " << i);
    EXPECT_EQ(bad[i]->finished_count, 1);
    EXPECT_EQ(bad[i]->status.code(), absl::StatusCode::kInternal) << bad[i]->status;
    EXPECT_TRUE(bad[i]->tokens.empty());
    EXPECT_TRUE(bad[i]->scores.empty());
  }
  EXPECT_TRUE(good->status.ok()) << good->status;
  EXPECT_EQ(good->tokens, RunAlone({{1, 2, 3}, 4, nullptr})->tokens);
  EXPECT_EQ(batcher.kv_tokens_used(), 0);
}

TEST(ContinuousBatcher, LastPromptTokenRuleLeavesDecodedTokensToTheModelsOwnRouters) {
  Wanted w{{1, 2, 3}, 6, Routing(5), ApplicationRule::kEveryNewToken};
  const std::vector<int32_t> every = RunAlone(w)->tokens;
  w.rule = ApplicationRule::kLastPromptToken;
  const std::vector<int32_t> last = RunAlone(w)->tokens;
  w.routing = nullptr;
  const std::vector<int32_t> plain = RunAlone(w)->tokens;
  EXPECT_NE(every, last);
  EXPECT_NE(last, plain);
  EXPECT_EQ(every.front(), last.front());
}

// In chunks as small as a token, where others left the beginning in the cache, and taken back.
TEST(ContinuousBatcher, APathwayGovernsAsManyLastPositionsOfThePromptAsIsAsked) {
  std::vector<int32_t> prompt(100);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(i * 7 % 48);
  const std::vector<int32_t> plain = RunAlone({prompt, 1, nullptr})->tokens;
  for (const int positions : {1, 2, 40, 99, 100, 1000}) {
    for (const int chunk : {1, 30, 256}) {
      for (const bool accepts : {true, false}) {
        SCOPED_TRACE(testing::Message() << positions << " positions, chunks of " << chunk << ", accepts " << accepts);
        HashModel model;
        BatcherLimits limits;
        limits.prefill_tokens_per_step = chunk;
        ContinuousBatcher batcher(&model, limits, nullptr);
        std::vector<std::vector<int32_t>> tokens;
        for (const auto& routing :
             {std::shared_ptr<RoutingOverride>(), Routing(5), std::shared_ptr<RoutingOverride>()}) {
          const auto sink = std::make_shared<RecordingSink>();
          Wanted wanted{prompt, 1, routing};
          wanted.prompt_positions = positions;
          wanted.accepts = accepts;
          batcher.Add(MakeRequest(wanted, sink));
          while (batcher.Step()) {
          }
          tokens.push_back(sink->tokens);
        }
        HashModel oracle;
        Segment whole;
        const std::vector<int32_t> blocks = {0, 1, 2, 3};
        whole.kv.blocks = blocks;
        whole.tokens = prompt;
        const auto placed = *oracle.PlaceRouting(*Routing(5));
        whole.routing = accepts ? placed.get() : nullptr;
        whole.override_start = std::max(0, 100 - positions);
        whole.readout.distribution = true;
        std::vector<SegmentOutput> outputs;
        ASSERT_TRUE(oracle.Forward({whole}, outputs).ok());
        const int32_t expected = outputs.front().readout.likeliest;
        EXPECT_EQ(tokens[0], plain);
        EXPECT_EQ(tokens[1], std::vector<int32_t>{expected});
        EXPECT_EQ(tokens[2], plain) << "the governed positions were taken for the model's own";
      }
    }
  }
}

TEST(ContinuousBatcher, APathwayThatWasRevertedGivesThePlainTokens) {
  HashModel model;
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
  auto sink = std::make_shared<RecordingSink>();
  SequenceRequest request = MakeRequest({{4, 5, 6}, 6, nullptr}, sink);
  request.on_prefilled = [](const PromptCapture&, const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
    return std::make_shared<CountdownTask>(2, nullptr);
  };
  batcher.Add(std::move(request));
  while (batcher.Step()) {
  }
  EXPECT_EQ(sink->tokens, RunAlone({{4, 5, 6}, 6, nullptr})->tokens);
}

TEST(ContinuousBatcher, APathwayThatIsNotAcceptedOnTrialLeavesNoTrace) {
  for (const bool scoring : {false, true}) {
    for (const bool accepts : {false, true}) {
      SCOPED_TRACE(testing::Message() << (scoring ? "scores" : "tokens") << (accepts ? ", accepted" : ", rejected"));
      HashModel model;
      ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
      const auto task = std::make_shared<CountdownTask>(2, Routing(5));
      task->accepts = accepts;
      const auto make = [&](std::shared_ptr<RecordingSink> sink, bool optimized) {
        SequenceRequest request = MakeRequest({{4, 5, 6}, 6, nullptr}, sink);
        if (scoring) request.continuations = {{7, 8, 9}, {10}, {11, 12}};
        if (optimized) {
          request.on_prefilled = [task](const PromptCapture&,
                                        const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
            return task;
          };
        }
        return request;
      };
      const auto tried = std::make_shared<RecordingSink>(), plain = std::make_shared<RecordingSink>();
      batcher.Add(make(tried, true));
      batcher.Add(make(plain, false));
      while (batcher.Step()) {
      }
      EXPECT_EQ(task->trials, 1);
      EXPECT_EQ(tried->finished_count, 1);
      EXPECT_EQ(tried->tokens == plain->tokens && LogprobsOf(*tried) == LogprobsOf(*plain), !accepts);
    }
  }
}

TEST(ContinuousBatcher, OptimizationDoesNotStallRunningStreams) {
  HashModel model;
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
  auto stream = std::make_shared<RecordingSink>(), optimizing = std::make_shared<RecordingSink>();
  batcher.Add(MakeRequest({{1}, 100, nullptr}, stream));
  batcher.Step();
  batcher.Add(MakeRequest({{2}, 1, Routing(1), ApplicationRule::kEveryNewToken, 20}, optimizing));
  const size_t before = stream->tokens.size();
  for (int i = 0; i < 10; ++i) batcher.Step();
  EXPECT_EQ(stream->tokens.size(), before + 10);
}

// A unit that takes long is paid for by passes without one.
TEST(ContinuousBatcher, OptimizationTakesItsShareOfTheTimeBesideStreams) {
  HashModel model;
  model.per_forward = absl::Milliseconds(2);
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr, [&] { return model.now; });
  auto stream = std::make_shared<RecordingSink>(), optimizing = std::make_shared<RecordingSink>();
  batcher.Add(MakeRequest({{1}, 1000, nullptr}, stream));
  auto task = std::make_shared<CountdownTask>(10, Routing(1));
  task->on_step = [&] { model.now += absl::Milliseconds(4); };
  SequenceRequest request = MakeRequest({{2}, 1, nullptr}, optimizing);
  request.on_prefilled = [task](const PromptCapture&,
                                const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> { return task; };
  batcher.Add(std::move(request));
  while (optimizing->finished_count == 0) batcher.Step();
  // Ten units of 4 ms at 0.08 of the passes' time: 25 passes of 2 ms for each but the last.
  EXPECT_GE(stream->tokens.size(), 9 * 25u);
  EXPECT_LE(stream->tokens.size(), 10 * 26u);
}

TEST(ContinuousBatcher, PrefillKeepsToItsTokenBudget) {
  HashModel model;
  BatcherLimits limits;
  limits.prefill_tokens_per_step = 16;
  ContinuousBatcher batcher(&model, limits, nullptr);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 4; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>());
    batcher.Add(MakeRequest({std::vector<int32_t>(30, i), 3, nullptr}, sinks.back()));
  }
  while (batcher.Step()) {
  }
  EXPECT_LE(model.most_rows, 16 + 3);
  for (const auto& sink : sinks) EXPECT_EQ(sink->tokens.size(), 3u);
}

// However long a continuation is, a pass is no longer for it, and its score is that of one pass.
TEST(ContinuousBatcher, ALongContinuationIsScoredInParts) {
  Wanted wanted{{1, 2, 3}, 8, nullptr};
  wanted.continuations = {{4}, {5, 6}, std::vector<int32_t>(900, 7), {8, 9, 10}};
  BatcherLimits limits;
  limits.prefill_tokens_per_step = 16;
  HashModel model;
  ContinuousBatcher batcher(&model, limits, nullptr);
  const auto sink = std::make_shared<RecordingSink>(), stream = std::make_shared<RecordingSink>();
  batcher.Add(MakeRequest({{11, 12}, 1000, nullptr}, stream));
  batcher.Add(MakeRequest(wanted, sink));
  size_t longest_gap = 0, gap = 0;
  for (size_t before = 0; sink->finished_count == 0 && batcher.Step(); before = stream->tokens.size()) {
    gap = stream->tokens.size() > before ? 0 : gap + 1;
    longest_gap = std::max(longest_gap, gap);
  }
  EXPECT_LE(longest_gap, 1u);
  EXPECT_LE(model.most_rows, 1 + 16 + kUncutRows);
  EXPECT_EQ(LogprobsOf(*sink), LogprobsOf(*RunAlone(wanted)));
  batcher.AbortAll(absl::CancelledError("the test ends"));
  EXPECT_EQ(batcher.kv_tokens_used(), 0);
}

TEST(ContinuousBatcher, CancelledSequenceFreesItsCacheBeforeTheNextForward) {
  HashModel model;
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
  for (int steps_before : {0, 1, 2, 4, 7}) {  // Waiting, prefilled, optimizing, decoding.
    auto sink = std::make_shared<RecordingSink>();
    auto cancelled = std::make_shared<std::atomic<bool>>(false);
    SequenceRequest request = MakeRequest({{1, 2}, 100, Routing(2), ApplicationRule::kEveryNewToken, 4}, sink);
    request.cancelled = cancelled;
    batcher.Add(std::move(request));
    for (int i = 0; i < steps_before; ++i) batcher.Step();
    *cancelled = true;
    const int forwards = model.forwards;
    batcher.Step();
    EXPECT_EQ(model.forwards, forwards);
    EXPECT_EQ(sink->status.code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(batcher.kv_tokens_used(), 0);
  }
}

TEST(ContinuousBatcher, APassedDeadlineEndsTheSequence) {
  HashModel model;
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
  auto sink = std::make_shared<RecordingSink>();
  SequenceRequest request = MakeRequest({{1, 2}, 100, nullptr}, sink);
  request.deadline = SteadyNow() - absl::Seconds(1);
  batcher.Add(std::move(request));
  batcher.Step();
  EXPECT_EQ(sink->status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(ContinuousBatcher, ASequenceThatCanNeverFitIsRefusedAtOnce) {
  HashModel model;
  BatcherLimits limits;
  limits.kv_tokens_max = 2 * KvBlockPool::kPositions;
  ContinuousBatcher batcher(&model, limits, nullptr);
  auto fits = std::make_shared<RecordingSink>(), never = std::make_shared<RecordingSink>();
  batcher.Add(MakeRequest({{1, 2, 3}, 61, nullptr}, fits));
  batcher.Add(MakeRequest({{1, 2, 3}, 62, nullptr}, never));
  EXPECT_EQ(never->status.code(), absl::StatusCode::kResourceExhausted);
  while (batcher.Step()) {
  }
  EXPECT_TRUE(fits->status.ok());
}

TEST(ContinuousBatcher, WaitsForCacheRoomAndThenServes) {
  HashModel model;
  BatcherLimits limits;
  limits.kv_tokens_max = 2 * KvBlockPool::kPositions;
  ContinuousBatcher batcher(&model, limits, nullptr);
  auto a = std::make_shared<RecordingSink>(), b = std::make_shared<RecordingSink>();
  batcher.Add(MakeRequest({std::vector<int32_t>(40, 7), 8, nullptr}, a));
  batcher.Add(MakeRequest({std::vector<int32_t>(40, 7), 8, nullptr}, b));
  batcher.Step();
  EXPECT_EQ(batcher.running(), 1);
  EXPECT_EQ(batcher.waiting(), 1);
  while (batcher.Step()) {
  }
  EXPECT_EQ(a->tokens, b->tokens);
}

TEST(ContinuousBatcher, AStopFromTheSinkEndsWithReasonStop) {
  HashModel model;
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
  auto sink = std::make_shared<RecordingSink>(3);
  batcher.Add(MakeRequest({{1}, 100, nullptr}, sink));
  while (batcher.Step()) {
  }
  EXPECT_EQ(sink->tokens.size(), 3u);
  EXPECT_EQ(sink->reason, FinishReason::kStop);
}

TEST(ContinuousBatcher, ScoresEveryContinuationUnderTheFoundPathway) {
  HashModel model;
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
  const auto score = [&](std::shared_ptr<const RoutingOverride> routing) {
    auto sink = std::make_shared<RecordingSink>();
    SequenceRequest request = MakeRequest({{1, 2}, 1, routing}, sink);
    request.continuations = {{3}, {4, 5, 6}, {7, 8}};
    batcher.Add(std::move(request));
    while (batcher.Step()) {
    }
    EXPECT_TRUE(sink->status.ok());
    EXPECT_TRUE(sink->tokens.empty());
    return sink->scores;
  };
  const auto plain = score(nullptr), routed = score(Routing(3));
  ASSERT_EQ(plain.size(), 3u);
  EXPECT_EQ(plain[1].token_logprobs.size(), 3u);
  EXPECT_NEAR(plain[1].log_likelihood,
              double{plain[1].token_logprobs[0]} + plain[1].token_logprobs[1] + plain[1].token_logprobs[2], 1e-4);
  EXPECT_LT(plain[0].log_likelihood, 0);
  EXPECT_NE(plain[1].token_logprobs, routed[1].token_logprobs);
}

TEST(ContinuousBatcher, AFailingForwardOrTaskEndsOnlyWithAStatus) {
  HashModel model;
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
  auto task = std::make_shared<RecordingSink>(), forward = std::make_shared<RecordingSink>();
  SequenceRequest request = MakeRequest({{1, 2}, 4, nullptr}, task);
  request.on_prefilled = [](const PromptCapture&, const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
    return std::make_shared<CountdownTask>(1, nullptr, absl::InternalError("bad step"));
  };
  batcher.Add(std::move(request));
  while (batcher.Step()) {
  }
  EXPECT_EQ(task->status.message(), "bad step");
  model.fail_with = absl::InternalError("bad pass");
  batcher.Add(MakeRequest({{1, 2}, 4, nullptr}, forward));
  while (batcher.Step()) {
  }
  EXPECT_EQ(forward->status.message(), "bad pass");
  EXPECT_EQ(batcher.kv_tokens_used(), 0);
}

TEST(Engine, ServesRequestsOfManyThreadsAndRefusesBeyondItsLimit) {
  HashModel model;
  Engine engine(&model, BatcherLimits(), 64, nullptr);
  std::vector<std::thread> clients;
  std::atomic<int> served{0}, refused{0};
  const std::vector<int32_t> expected = RunAlone({{1, 2, 3}, 20, nullptr})->tokens;
  for (int c = 0; c < 8; ++c) {
    clients.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        auto sink = std::make_shared<RecordingSink>();
        if (!engine.Submit(MakeRequest({{1, 2, 3}, 20, nullptr}, sink)).ok()) {
          ++refused;
          continue;
        }
        sink->done.WaitForNotification();
        EXPECT_EQ(sink->tokens, expected);
        ++served;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(served + refused, 160);
  EXPECT_EQ(engine.pending(), 0);
  engine.Stop(absl::ZeroDuration());
  EXPECT_EQ(engine.Submit(MakeRequest({{1}, 1, nullptr}, std::make_shared<RecordingSink>())).code(),
            absl::StatusCode::kUnavailable);
}

TEST(ContinuousBatcher, TheHighestPriorityGoesFirstThenTheCallerWithTheFewestRunningThenTheFirstCome) {
  HashModel model;
  BatcherLimits limits;
  limits.sequences_max = 2;
  ContinuousBatcher batcher(&model, limits, nullptr);
  std::vector<std::string> order;
  class OrderSink final : public SequenceSink {
   public:
    OrderSink(std::string name, std::vector<std::string>& order) : name_(std::move(name)), order_(order) {}
    bool OnToken(const SampledToken&) override { return true; }
    void OnScores(std::vector<ContinuationScore>) override {}
    void OnFinished(const absl::Status&, FinishReason, const SequenceTimings&) override { order_.push_back(name_); }

   private:
    const std::string name_;
    std::vector<std::string>& order_;
  };
  const auto add = [&](const std::string& caller, int number, Priority priority, int max_tokens) {
    SequenceRequest request = MakeRequest({{number}, max_tokens, nullptr},
                                          std::make_shared<OrderSink>(caller + std::to_string(number), order));
    request.caller = caller;
    request.priority = priority;
    batcher.Add(std::move(request));
  };
  add("ann", 0, Priority::kNormal, 30);  // Runs beside all the others.
  batcher.Step();
  add("import", 1, Priority::kLow, 2);
  add("ann", 2, Priority::kNormal, 2);
  add("ann", 3, Priority::kNormal, 2);
  add("ben", 4, Priority::kNormal, 2);
  add("ben", 5, Priority::kNormal, 2);
  add("ann", 6, Priority::kHigh, 2);
  while (batcher.Step()) {
  }
  EXPECT_EQ(order, (std::vector<std::string>{"ann6", "ben4", "ben5", "ann2", "ann3", "import1", "ann0"}));
}

TEST(Engine, IsStalledWhileItHasWorkAndEndsNoStep) {
  HashModel model;
  Engine engine(&model, BatcherLimits(), 4, nullptr);
  EXPECT_EQ(engine.StalledFor(), absl::ZeroDuration());
  absl::Notification reached, go_on;
  auto sink = std::make_shared<RecordingSink>();
  SequenceRequest request = MakeRequest({{1}, 1, nullptr}, sink);
  request.on_prefilled = [&](const PromptCapture&,
                             const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
    reached.Notify();
    go_on.WaitForNotification();
    return nullptr;
  };
  ASSERT_TRUE(engine.Submit(std::move(request)).ok());
  reached.WaitForNotification();
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_GE(engine.StalledFor(), absl::Milliseconds(50));
  go_on.Notify();
  sink->done.WaitForNotification();
  EXPECT_EQ(engine.StalledFor(), absl::ZeroDuration());
}

// Its forward passes take a millisecond: half a million tokens end in no test.
class SlowModel final : public PartialModel {
 public:
  SlowModel() { shape_ = HashModel().shape(); }
  absl::Status Forward(absl::Span<const Segment> segments, std::vector<SegmentOutput>& outputs) override {
    absl::SleepFor(absl::Milliseconds(1));
    outputs.assign(segments.size(), {});
    return absl::OkStatus();
  }
};

TEST(Engine, AFullQueueIsResourceExhaustedAndStopEndsWhatIsLeft) {
  SlowModel model;
  BatcherLimits limits;
  limits.kv_tokens_max = 1 << 20;
  Engine engine(&model, limits, 1, nullptr);
  auto sink = std::make_shared<RecordingSink>();
  Wanted endless{{1}, 1 << 19, nullptr};
  ASSERT_TRUE(engine.Submit(MakeRequest(endless, sink)).ok());
  EXPECT_EQ(engine.Submit(MakeRequest(endless, std::make_shared<RecordingSink>())).code(),
            absl::StatusCode::kResourceExhausted);
  engine.Stop(absl::ZeroDuration());
  EXPECT_TRUE(sink->done.HasBeenNotified());
  EXPECT_EQ(sink->status.code(), absl::StatusCode::kUnavailable);
}

TEST(ContinuousBatcher, StagesAddUpAndWaitingForTurnsIsOneOfThem) {
  HashModel model;
  model.per_forward = absl::Seconds(1);
  model.per_evaluation = absl::Seconds(2);
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr, [&] { return model.now; });
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 2; ++i) {
    Wanted wanted{{1, 2, 3 + i}, 4, Routing(2.5F)};
    wanted.asks = true;
    wanted.rows = kEvaluationRowsMax;  // Too many to be evaluated together.
    sinks.push_back(std::make_shared<RecordingSink>());
    SequenceRequest request = MakeRequest(wanted, sinks.back());
    request.arrival = absl::UnixEpoch() - absl::Seconds(5);
    batcher.Add(std::move(request));
  }
  while (batcher.Step()) {
  }
  double last_end = 0;
  for (const auto& sink : sinks) {
    const SequenceTimings& t = sink->timings;
    EXPECT_EQ(t.before_batch_seconds, 5);
    EXPECT_EQ(t.optimization_seconds, 3 * 2);
    EXPECT_GE(t.optimization_wait_seconds, 2 * 2);  // The other's turns between its own.
    EXPECT_TRUE(t.optimized);
    const double before_decode =
        *t.before_batch_seconds + t.prefill_seconds + t.optimization_seconds + t.optimization_wait_seconds;
    EXPECT_EQ(before_decode + t.first_token_seconds, t.time_to_first_token_seconds);
    last_end = std::max(last_end, before_decode + t.decode_seconds);
  }
  EXPECT_EQ(last_end, absl::ToDoubleSeconds(model.now - absl::UnixEpoch()) + 5);
}

}  // namespace
}  // namespace c3po
