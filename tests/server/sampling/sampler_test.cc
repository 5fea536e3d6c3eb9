#include "server/sampling/sampler.h"

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

constexpr float kFloatMax = std::numeric_limits<float>::max();

std::vector<float> RandomLogits(uint64_t seed, int vocabulary) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(vocabulary);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

SamplingParams WithTemperature(double temperature) {
  SamplingParams params;
  params.temperature = temperature;
  return params;
}

int32_t MustSample(const std::vector<float>& logits, const SamplingParams& params,
                   const std::vector<int32_t>& context = {}, int64_t position = 0) {
  const auto token = Sample(logits, params, context, position);
  EXPECT_TRUE(token.ok()) << token.status();
  return token.ok() ? token->token_id : -1;
}

TEST(Sampler, TemperatureZeroIsTheExactArgmaxWhateverElseIsSet) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    const std::vector<float> logits = RandomLogits(seed, 1000);
    int32_t best = 0;
    for (int32_t i = 1; i < 1000; ++i) {
      if (logits[i] > logits[best]) best = i;
    }
    SamplingParams params;
    EXPECT_EQ(MustSample(logits, params), best) << "seed " << seed;
    params.seed = seed;
    params.top_k = 5;
    params.top_p = 0.1;
    params.min_p = 0.3;
    EXPECT_EQ(MustSample(logits, params, {1, 2}, seed), best) << "seed " << seed;
  }
}

TEST(Sampler, GreedyFindsTheLargestAndWhatIsNotFiniteWhereverTheyAre) {
  for (size_t size = 1; size <= 50; ++size) {
    for (size_t at = 0; at < size; ++at) {
      std::vector<float> logits(size, -5);
      logits[at] = -4;
      EXPECT_EQ(MustSample(logits, {}), static_cast<int32_t>(at)) << size;
      logits[at] = -HUGE_VALF;
      const absl::Status status = Sample(logits, {}, {}, 0).status();
      EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("logits[", at, "]"))) << size;
    }
  }
}

TEST(Sampler, GreedySeesOneUnitInTheLastPlace) {
  std::vector<float> logits(100, 12.5f);
  logits[63] = std::nextafter(12.5f, 13.0f);
  EXPECT_EQ(MustSample(logits, {}), 63);
}

TEST(Sampler, GreedyTakesTheLowestIdOfEquals) {
  EXPECT_EQ(MustSample({1, 3, 3, 2, 3}, {}), 1);
  EXPECT_EQ(MustSample({-0.0f, 0.0f}, {}), 0);
}

TEST(Sampler, FiltersThatLeaveOneTokenAreGreedy) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const std::vector<float> logits = RandomLogits(seed, 500);
    const int32_t best = MustSample(logits, {});
    std::vector<SamplingParams> cases(4, WithTemperature(1.5));
    cases[0].top_k = 1;
    cases[1].top_p = std::numeric_limits<double>::min();
    cases[2].min_p = std::nextafter(1.0, 0.0);
    cases[3].temperature = 1e-300;
    for (size_t i = 0; i < cases.size(); ++i) {
      cases[i].seed = seed;
      for (int position = 0; position < 20; ++position) {
        EXPECT_EQ(MustSample(logits, cases[i], {}, position), best) << "seed " << seed << ", case " << i;
      }
    }
  }
}

TEST(Sampler, TopKKeepsTheLowerIdsOfEquallyLikelyTokens) {
  const std::vector<float> logits = {1, 5, 1, 1, 1};
  SamplingParams params = WithTemperature(100);
  params.top_k = 3;
  std::vector<int> counts(5);
  for (int i = 0; i < 1000; ++i) ++counts[MustSample(logits, params, {}, i)];
  EXPECT_GT(counts[0], 0);
  EXPECT_GT(counts[1], 0);
  EXPECT_GT(counts[2], 0);
  EXPECT_EQ(counts[3] + counts[4], 0);
}

TEST(Sampler, TopPKeepsExactlyTheShareAskedForWhenItCanBeMet) {
  const std::vector<float> logits(8, 2.0f);
  SamplingParams params = WithTemperature(1);
  params.top_p = 0.5;
  std::vector<int> counts(8);
  for (int i = 0; i < 1000; ++i) ++counts[MustSample(logits, params, {}, i)];
  for (int i = 0; i < 4; ++i) EXPECT_GT(counts[i], 0) << i;
  for (int i = 4; i < 8; ++i) EXPECT_EQ(counts[i], 0) << i;
}

TEST(Sampler, TheChoiceDependsOnSeedAndPositionNotOnTheOrderOfCalls) {
  const std::vector<float> logits = RandomLogits(9, 2000);
  SamplingParams params = WithTemperature(1);
  params.top_p = 0.9;
  params.seed = 42;
  constexpr int kPositions = 200;
  std::vector<int32_t> forward(kPositions), backward(kPositions), threaded(kPositions);
  for (int i = 0; i < kPositions; ++i) forward[i] = MustSample(logits, params, {}, i);
  for (int i = kPositions - 1; i >= 0; --i) {
    SamplingParams other = params;
    other.seed = i;
    MustSample(logits, other, {}, i);  // A request with another seed in between.
    backward[i] = MustSample(logits, params, {}, i);
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = t; i < kPositions; i += 4) threaded[i] = MustSample(logits, params, {}, i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(forward, backward);
  EXPECT_EQ(forward, threaded);

  params.seed = 43;
  std::vector<int32_t> other_seed(kPositions);
  for (int i = 0; i < kPositions; ++i) other_seed[i] = MustSample(logits, params, {}, i);
  EXPECT_NE(forward, other_seed);
}

TEST(Sampler, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogitsOnce) {
  SamplingParams params;
  params.repetition_penalty = 2;
  EXPECT_EQ(MustSample({4, 3, 1}, params, {0}), 1);          // 4 / 2 < 3
  EXPECT_EQ(MustSample({4, 1.5, 1}, params, {0, 0, 0}), 0);  // Once, not 4 / 8.
  EXPECT_EQ(MustSample({-1, -1.5, -3}, params, {0}), 1);     // -2 < -1.5
  EXPECT_EQ(MustSample({4, 3, 1}, params, {}), 0);
  params.repetition_penalty = 0.5;
  EXPECT_EQ(MustSample({4, 3, 1}, params, {1}), 1);  // 6 > 4
}

TEST(Sampler, LogitBiasIsAddedBeforeThePenalty) {
  SamplingParams params;
  params.logit_bias = {{0, -1.5f}, {2, 2.5f}};
  EXPECT_EQ(MustSample({4, 3, 1}, params), 2);  // 2.5, 3, 3.5
  EXPECT_EQ(MustSample({4, 3.75f, 1}, params), 1);
  params.repetition_penalty = 2;
  EXPECT_EQ(MustSample({4, 3, 1}, params, {2}), 1);  // 3.5 / 2, where 1 / 2 + 2.5 would be as large as 3.
  params = WithTemperature(1);
  params.logit_bias = {{0, -100}, {1, -100}};
  for (int i = 0; i < 100; ++i) EXPECT_EQ(MustSample({4, 3, 1}, params, {}, i), 2);
  params.logit_bias = {{3, 1}};
  EXPECT_EQ(Sample({4, 3, 1}, params, {}, 0).status().message(), "logit_bias[3]: the vocabulary has 3 tokens");
}

TEST(Sampler, LogprobsDoNotDependOnPenaltyTemperatureOrFilters) {
  SamplingParams params = WithTemperature(0.5);
  params.logit_bias = {{2, 1e-3f}};
  params.top_k = 1;
  params.repetition_penalty = 4;
  params.logprobs = 2;
  const auto token = Sample({std::log(0.5f), std::log(0.3f), std::log(0.2f)}, params, std::vector<int32_t>{0}, 0);
  ASSERT_TRUE(token.ok()) << token.status();
  EXPECT_EQ(token->token_id, 1);  // ln 0.5 * 4 falls below the others.
  EXPECT_NEAR(token->logprob, std::log(0.3), 1e-6);
  ASSERT_EQ(token->top_logprobs.size(), 2u);
  EXPECT_EQ(token->top_logprobs[0].token_id, 0);
  EXPECT_NEAR(token->top_logprobs[0].logprob, std::log(0.5), 1e-6);
  EXPECT_EQ(token->top_logprobs[1].token_id, 1);
}

TEST(Sampler, LogprobsMayBeAbsentOrOfTheChosenTokenOnly) {
  SamplingParams params;
  EXPECT_TRUE(Sample({1, 2}, params, {}, 0)->top_logprobs.empty());
  EXPECT_EQ(Sample({1, 2}, params, {}, 0)->logprob, 0);
  params.logprobs = 0;
  EXPECT_TRUE(Sample({1, 2}, params, {}, 0)->top_logprobs.empty());
  EXPECT_NEAR(Sample({1, 2}, params, {}, 0)->logprob, -std::log1p(std::exp(-1.0)), 1e-6);
  params.logprobs = 20;
  EXPECT_EQ(Sample({1, 2}, params, {}, 0)->top_logprobs.size(), 2u);
}

TEST(Sampler, ExtremeValuesStayDefined) {
  SamplingParams hot = WithTemperature(kTemperatureMax);
  hot.top_k = std::numeric_limits<int>::max();
  hot.seed = std::numeric_limits<uint64_t>::max();
  hot.logprobs = 1;
  const auto token = Sample({kFloatMax, -kFloatMax, 0}, hot, {}, std::numeric_limits<int64_t>::max());
  ASSERT_TRUE(token.ok()) << token.status();
  EXPECT_TRUE(std::isfinite(token->top_logprobs[0].logprob));
  EXPECT_EQ(MustSample({kFloatMax, -kFloatMax}, WithTemperature(1)), 0);
  EXPECT_EQ(MustSample({7}, WithTemperature(1)), 0);
  SamplingParams penalty = WithTemperature(1);
  penalty.repetition_penalty = kRepetitionPenaltyMin;
  EXPECT_EQ(MustSample({1, -1}, penalty, {0, 1}), 0);
  penalty.repetition_penalty = kRepetitionPenaltyMax;
  EXPECT_EQ(MustSample({1, -1}, penalty, {0, 1}), 0);
}

TEST(Sampler, LogitsThatAreNotFiniteAreAnErrorThatNamesTheIndex) {
  for (float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    for (double temperature : {0.0, 1.0}) {
      const absl::Status status = Sample({0, 1, bad, 2}, WithTemperature(temperature), {}, 0).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(status.message()), HasSubstr("logits[2]"));
    }
  }
}

TEST(Sampler, BadArgumentsAreErrors) {
  EXPECT_EQ(Sample({}, {}, {}, 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Sample({1}, {}, {}, -1).status().code(), absl::StatusCode::kInvalidArgument);
  SamplingParams params;
  params.repetition_penalty = 1.1;
  for (int32_t id : {-1, 2}) {
    const absl::Status status = Sample({1, 2}, params, std::vector<int32_t>{0, id}, 0).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("context_ids[1]"));
  }
  params.top_p = 0;
  EXPECT_THAT(std::string(Sample({1, 2}, params, {}, 0).status().message()), HasSubstr("top_p"));
}

TEST(ValidateSamplingParams, AcceptsTheDefaultsAndTheEndsOfTheRanges) {
  EXPECT_TRUE(ValidateSamplingParams({}).ok());
  SamplingParams params;
  params.temperature = 100;
  params.top_k = std::numeric_limits<int>::max();
  params.top_p = std::numeric_limits<double>::denorm_min();
  params.min_p = 0.999;
  params.max_tokens = 1;
  params.stop.assign(kStopStringsMax, std::string(kStopStringBytesMax, 's'));
  params.logprobs = kLogprobsMax;
  EXPECT_TRUE(ValidateSamplingParams(params).ok()) << ValidateSamplingParams(params);
}

TEST(ValidateSamplingParams, TellsEnoughDigitsToSeeWhatIsWrong) {
  SamplingParams params;
  params.top_p = 1.0000001;
  EXPECT_EQ(ValidateSamplingParams(params).message(), "top_p: 1.0000001 is not in (0, 1]");
  params = SamplingParams();
  params.min_p = -1e-9;
  EXPECT_EQ(ValidateSamplingParams(params).message(), "min_p: -1e-09 is not in [0, 1)");
  params = SamplingParams();
  params.logit_bias = {{3, 100.00001F}};
  EXPECT_EQ(ValidateSamplingParams(params).message(), "logit_bias[3]: 100.00001 is not in [-100, 100]");
}

TEST(ValidateSamplingParams, NamesTheFieldThatIsOutOfRange) {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  using Change = std::function<void(SamplingParams&)>;
  std::vector<std::pair<std::string, Change>> cases;
  for (double bad : {nan, inf, -0.1}) {
    cases.emplace_back("temperature", [bad](SamplingParams& p) { p.temperature = bad; });
    cases.emplace_back("repetition_penalty", [bad](SamplingParams& p) { p.repetition_penalty = bad; });
    cases.emplace_back("top_p", [bad](SamplingParams& p) { p.top_p = bad; });
    cases.emplace_back("min_p", [bad](SamplingParams& p) { p.min_p = bad; });
  }
  for (const double bad : {0.0, 0.009, 100.1, 1e308}) {
    cases.emplace_back("repetition_penalty", [bad](SamplingParams& p) { p.repetition_penalty = bad; });
  }
  for (const double bad : {100.1, 1e308}) {
    cases.emplace_back("temperature", [bad](SamplingParams& p) { p.temperature = bad; });
  }
  cases.emplace_back("n: 0", [](SamplingParams& p) { p.n = 0; });
  cases.emplace_back("logit_bias[7]: 100.5", [](SamplingParams& p) { p.logit_bias = {{3, 100}, {7, 100.5f}}; });
  cases.emplace_back("logit_bias[1]: nan", [](SamplingParams& p) { p.logit_bias = {{1, std::nanf("")}}; });
  cases.emplace_back("n: 2 answers would all be the same", [](SamplingParams& p) { p.n = 2; });
  cases.emplace_back("answer", [](SamplingParams& p) { p.answer = 1; });
  cases.emplace_back("top_p", [](SamplingParams& p) { p.top_p = 0; });
  cases.emplace_back("top_p", [](SamplingParams& p) { p.top_p = 1.01; });
  cases.emplace_back("min_p", [](SamplingParams& p) { p.min_p = 1; });
  cases.emplace_back("top_k", [](SamplingParams& p) { p.top_k = -1; });
  cases.emplace_back("max_tokens", [](SamplingParams& p) { p.max_tokens = 0; });
  cases.emplace_back("logprobs", [](SamplingParams& p) { p.logprobs = -2; });
  cases.emplace_back("logprobs", [](SamplingParams& p) { p.logprobs = kLogprobsMax + 1; });
  cases.emplace_back("stop[1]", [](SamplingParams& p) { p.stop = {"a", ""}; });
  cases.emplace_back("stop[0]", [](SamplingParams& p) { p.stop = {std::string(kStopStringBytesMax + 1, 's')}; });
  cases.emplace_back("stop: ", [](SamplingParams& p) { p.stop.assign(kStopStringsMax + 1, "s"); });
  for (const auto& [field, change] : cases) {
    SamplingParams params;
    change(params);
    const absl::Status status = ValidateSamplingParams(params);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(std::string(status.message()), ::testing::StartsWith(field));
  }
}

}  // namespace
}  // namespace c3po
