#include "server/pipeline/request_admission.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <vector>

#include "server/pipeline/search_work.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

constexpr int64_t kPerMinute = 1000000;
constexpr int kMoeLayers = 4;

// A caller with a million tokens a minute, and a clock that stands.
class ChargeTest : public testing::Test {
 protected:
  ChargeTest() { call_.rates = *limiter_->Admit("ann", {}); }

  static OptimizationSettings Settings(Method method) {
    OptimizationSettings settings;
    settings.method = method;
    settings.k = 5;
    settings.steps = 10;
    settings.critical_layers = {3};
    return settings;
  }

  // What a request of 100 tokens with room for 20 takes of the caller's minute.
  int64_t Charged(const OptimizationSettings& settings) {
    PathwayQuery query{settings, {}, {}, std::nullopt};
    const absl::StatusOr<RequestWork> work = TakePlace(call_, nullptr, 100, 20, kMoeLayers, query);
    EXPECT_TRUE(work.ok()) << work.status();
    // As much as is left can be taken, and not one more.
    int64_t least = 0, most = kPerMinute;
    while (least < most) {
      const int64_t middle = (least + most + 1) / 2;
      if (other_->Charge(middle).ok()) {
        other_->Used(0);
        least = middle;
      } else {
        most = middle - 1;
      }
    }
    call_.Used(0);
    return kPerMinute - least;
  }

  const absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  const std::shared_ptr<RateLimiter> limiter_ = RateLimiter::Make({0, kPerMinute, 0}, nullptr, [this] { return now_; });
  const std::shared_ptr<RateLimiter::Call> other_ = *limiter_->Admit("ann", {});
  CallContext call_;
};

TEST_F(ChargeTest, ACallerPaysForTheWholeOptimizationAsAdmissionCountsIt) {
  EXPECT_EQ(Charged(Settings(Method::kNone)), 120);
  OptimizationSettings descent = Settings(Method::kNeighborhoodGradientDescent);
  // Five neighbors like the prompt; ten steps up and down a quarter of the layers.
  EXPECT_EQ(Charged(descent), 120 + 5 * 100 + 38);  // 3 * 10 * 5 / 4, rounded up.
  descent.prompt_positions = 64;
  EXPECT_EQ(Charged(descent), 120 + 5 * 100 + 3 * 10 * 5 * 64 / 4);
  descent.critical_layers = {0, 3};
  EXPECT_EQ(Charged(descent), 120 + 5 * 100 + 3 * 10 * 5 * 64);
  descent.validation_neighbors = 3;
  EXPECT_EQ(Charged(descent), 120 + 8 * 100 + 3 * 10 * 8 * 64);
  descent.neighborhoods = 5;  // Each looks at the three held-out neighbors: four passes over them more than one does.
  EXPECT_EQ(Charged(descent), 120 + 8 * 100 + (3 * 8 + 4 * 3) * 10 * 64);
  descent.steps = 1000;
  EXPECT_EQ(Charged(descent), kPerMinute) << "more than a minute's worth is taken of a full bucket, and owed";
}

TEST_F(ChargeTest, OtherMethodsPayForWhatTheyEvaluate) {
  OptimizationSettings regression = Settings(Method::kKernelRegression);
  EXPECT_EQ(Charged(regression), 120 + 5 * 100 + 14);  // A grid of 11 * 5 / 4, rounded up.
  regression.alpha = 0.5;
  EXPECT_EQ(Charged(regression), 120 + 5 * 100 + 3);  // The start and the blend.
  EXPECT_EQ(Charged(Settings(Method::kModeFinding)), 120 + 5 * 100 + 3);
  EXPECT_EQ(Charged(Settings(Method::kCollectionPrior)), 120);
  EXPECT_EQ(Charged(Settings(Method::kAmortizedShift)), 120);
}

// Of three parts, three evaluations with a gradient move each neighbor once.
TEST(SearchWork, CountsAStepOnceAllPartsHaveMoved) {
  SearchWork work;
  for (int i = 0; i < 7; ++i) work.NoteEvaluation(/*with_gradient=*/true, 3);
  work.NoteEvaluation(/*with_gradient=*/false, 3);
  EXPECT_EQ(work.steps, 2);
  EXPECT_EQ(work.trials, 1);
}

TEST_F(ChargeTest, WhatIsBeyondTheMinuteIsRefusedAndSaysWhenToComeBack) {
  PathwayQuery query{Settings(Method::kNeighborhoodGradientDescent), {}, {}, std::nullopt};
  query.settings.prompt_positions = 64;
  absl::Status refused;
  int taken = 0;
  while (refused.ok()) {
    CallContext context;
    context.rates = other_;
    refused = TakePlace(context, nullptr, 100, 20, kMoeLayers, query).status();
    taken += refused.ok() ? 1 : 0;
  }
  EXPECT_EQ(taken, kPerMinute / (620 + 2400));
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_EQ(ReasonOf(refused), "RATE");
  EXPECT_GT(RetryAfterOf(refused).value_or(absl::ZeroDuration()), absl::ZeroDuration());
}

ModelShape ShapeOfTwo() {
  ModelShape shape;
  shape.moe_layers = 16;
  shape.experts_per_token = 8;
  shape.experts_per_token_max = 64;
  return shape;
}

TEST(CheckExperts, TakesWhatTheLimitAndTheModelAllowBesideNoOptimization) {
  const ModelShape shape = ShapeOfTwo();
  RequestLimits limits;
  OptimizationSettings none;
  none.method = Method::kNone;
  limits.experts_per_token_max = 16;
  const auto check = [&](std::optional<int> count, const OptimizationSettings& settings) {
    return CheckExperts({false, count}, settings, limits, shape);
  };
  for (const std::optional<int> count : {std::optional<int>(), std::optional<int>(1), std::optional<int>(16)})
    EXPECT_TRUE(check(count, none).ok()) << count.value_or(-1);
  for (const int count : {0, -1, 17}) {
    const absl::Status refused = check(count, none);
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << count;
    EXPECT_EQ(refused.message().substr(0, 19), "experts_per_token: ") << refused;
  }
  OptimizationSettings descent, with_offset = none;
  descent.method = Method::kNeighborhoodGradientDescent;
  with_offset.use_offset = true;
  for (const OptimizationSettings& settings : {descent, with_offset}) {
    EXPECT_TRUE(absl::IsInvalidArgument(check(4, settings)));
    EXPECT_TRUE(check(8, settings).ok()) << "the model's own number";
    EXPECT_TRUE(check(std::nullopt, settings).ok());
  }
  limits.experts_per_token_max = 0;
  EXPECT_TRUE(check(64, none).ok());
  EXPECT_FALSE(check(65, none).ok());
  EXPECT_EQ(ExpertsPerToken({false, 8}, shape), 0);
  EXPECT_EQ(ExpertsPerToken({false, 7}, shape), 7);
}

TEST(HoldRoutes, CountsWhatIsKeptAndRefusesWhatNoMessageHolds) {
  const ModelShape shape = ShapeOfTwo();
  std::vector<size_t> held;
  CallContext call;
  call.hold_bytes = [&](size_t bytes) {
    held.push_back(bytes);
    return held.size() < 3 ? absl::OkStatus() : absl::ResourceExhaustedError("full");
  };
  EXPECT_TRUE(HoldRoutes(call, {false, std::nullopt}, 1000, true, shape).ok());
  EXPECT_TRUE(held.empty()) << "nobody asked";
  EXPECT_TRUE(HoldRoutes(call, {true, std::nullopt}, 1000, true, shape).ok());
  EXPECT_TRUE(HoldRoutes(call, {true, 2}, 1000000, false, shape).ok());
  EXPECT_EQ(held, (std::vector<size_t>{1000 * 16 * 8 * 8, size_t{1000000} * 16 * 2 * 8}));
  EXPECT_TRUE(absl::IsInvalidArgument(HoldRoutes(call, {true, std::nullopt}, 100000, true, shape)));
  EXPECT_TRUE(absl::IsResourceExhausted(HoldRoutes(call, {true, std::nullopt}, 1, true, shape)));
}

TEST(PassesCost, CountsEveryTokenOnceAndTheMovingRowsForEachPass) {
  NeighborCase answer, choices;
  answer.prompt = {1, 2, 3, 4};
  answer.continuations = {{5, 6, 7}};
  choices.prompt = {1, 2};
  choices.continuations = {{5}, {6, 7}};
  EXPECT_EQ(PassesCost({}, 3, 1, 1), 0);
  EXPECT_EQ(PassesCost({answer}, 0, 1, 1), 7);
  EXPECT_EQ(PassesCost({answer, choices}, 6, 1, 0.5), 7 + 5 + 6 * (3 + 2) / 2);
  EXPECT_EQ(PassesCost({answer, choices}, 6, 2, 1), 7 + 5 + 6 * (4 + 3));
}

}  // namespace
}  // namespace c3po
