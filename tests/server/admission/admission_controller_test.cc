#include "server/admission/admission_controller.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "index/base/steady_time.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

using Permits = std::vector<std::unique_ptr<AdmissionController::Permit>>;

// Enters `count` requests of `caller`; how many were let in.
int Enter(AdmissionController& controller, const std::string& caller, int count, Permits& permits) {
  int entered = 0;
  for (int i = 0; i < count; ++i) {
    auto permit = controller.Enter(caller);
    if (!permit.ok()) {
      EXPECT_TRUE(absl::IsResourceExhausted(permit.status()));
      EXPECT_TRUE(RetryAfterOf(permit.status()).has_value());
      continue;
    }
    permits.push_back(*std::move(permit));
    ++entered;
  }
  return entered;
}

TEST(AdmissionController, PlacesAreBoundedAndComeBack) {
  AdmissionController controller({3, 1000, 2});
  Permits permits;
  EXPECT_EQ(Enter(controller, "ann", 5, permits), 3);
  EXPECT_EQ(controller.pending(), 3);
  permits.pop_back();
  EXPECT_EQ(Enter(controller, "ann", 2, permits), 1);
  permits.clear();
  EXPECT_EQ(controller.pending(), 0);
}

TEST(AdmissionController, ACallerGetsItsShareOnceHalfThePlacesAreTaken) {
  AdmissionController controller({8, 1000, 2});
  Permits permits;
  EXPECT_EQ(Enter(controller, "ben", 1, permits), 1);
  EXPECT_EQ(Enter(controller, "ann", 8, permits), 3);  // Seven places, two callers.
  EXPECT_EQ(Enter(controller, "ben", 8, permits), 2);
  EXPECT_EQ(controller.pending(), 6);
  EXPECT_EQ(Enter(controller, "cleo", 8, permits), 1);  // The last place is for who has none.
  EXPECT_EQ(Enter(controller, "dan", 8, permits), 1);
  EXPECT_EQ(Enter(controller, "eve", 1, permits), 0);
  permits.clear();
  // Alone, a caller may have all but what is kept; who comes then finds that, and the next ones that come free.
  EXPECT_EQ(Enter(controller, "ann", 9, permits), 7);
  EXPECT_EQ(Enter(controller, "ben", 2, permits), 1);
  permits.erase(permits.begin(), permits.begin() + 2);
  EXPECT_EQ(Enter(controller, "ann", 1, permits), 0);
  EXPECT_EQ(Enter(controller, "ben", 1, permits), 1);
}

// However often one caller asks again, another one that asks one thing at a time is always let in.
TEST(AdmissionController, ACallerWithoutAPlaceIsLetInBesideOneThatNeverStopsAsking) {
  AdmissionController controller({16, 100000, 2});
  Permits crowd;
  for (int round = 0; round < 200; ++round) {
    Enter(controller, "ann", 50, crowd);
    Permits own;
    ASSERT_EQ(Enter(controller, "ben", 1, own), 1) << "round " << round;
    RequestWork work{10, 10};
    ASSERT_TRUE(own[0]->Take(work, absl::InfiniteFuture()).ok());
    if (round % 3 == 0) crowd.erase(crowd.begin());
  }
}

TEST(AdmissionController, WhatOptimizationsComputeIsPartOfWhatARequestCosts) {
  RequestWork plain{100, 20};
  EXPECT_EQ(plain.Cost(), 120);
  // 24 neighbors like the prompt; 8 steps up and down half of the layers at 4 positions of each.
  RequestWork optimizing{100, 20, 24, 8, true, 4, 0.5};
  EXPECT_EQ(optimizing.Cost(), 120 + 24 * 100 + 3 * 8 * 24 * 4 / 2);
  // A grid of 11 trials goes up only; steps of arithmetic cost nothing.
  RequestWork done = optimizing;
  done.case_tokens = 5000;  // The neighbors were longer than the prompt, and had answers of several tokens.
  done.case_rows = 24 * 6;
  EXPECT_EQ(done.Cost(), 120 + 5000 + 3 * 8 * 24 * 6 / 2);
  const RequestWork grid{100, 20, 3, 0, true, 1, 0.5, 3, 11}, averaging{100, 20, 3, 8, true, 1, 0.5, 0, 2};
  EXPECT_EQ(grid.Cost(), 120 + 3 * 100 + 17);  // 11 * 3 / 2, rounded up.
  EXPECT_EQ(averaging.Cost(), 120 + 3 * 100 + 3);
  AdmissionController controller({64, 12000, 2});
  Permits permits;
  Enter(controller, "ann", 8, permits);
  int taken = 0;
  for (const auto& permit : permits) {
    RequestWork work = optimizing;
    taken += permit->Take(work, absl::InfiniteFuture()).ok();
  }
  EXPECT_EQ(taken, 2);  // A third would be beyond seven eighths of 12,000.
  Permits other;
  Enter(controller, "ben", 2, other);
  EXPECT_TRUE(other[0]->Take(optimizing, absl::InfiniteFuture()).ok());
  EXPECT_FALSE(other[1]->Take(optimizing, absl::InfiniteFuture()).ok());
}

TEST(AdmissionController, TokensAreBoundedButARequestAloneIsLeftToTheEngine) {
  AdmissionController controller({8, 100, 2});
  Permits permits;
  EXPECT_EQ(Enter(controller, "ann", 3, permits), 3);
  RequestWork work{40, 30, 0, 0, false};
  EXPECT_TRUE(permits[0]->Take(work, absl::InfiniteFuture()).ok());
  const absl::Status refused = permits[1]->Take(work, absl::InfiniteFuture());
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_TRUE(RetryAfterOf(refused).has_value());
  permits.erase(permits.begin());
  EXPECT_TRUE(permits[0]->Take(work, absl::InfiniteFuture()).ok());
  permits.clear();
  EXPECT_EQ(Enter(controller, "ann", 1, permits), 1);
  RequestWork large{400, 30, 0, 0, false};
  EXPECT_TRUE(permits[0]->Take(large, absl::InfiniteFuture()).ok());
}

TEST(AdmissionController, BesideARequestBeyondAllRoomOthersFindWhatIsKeptForThem) {
  AdmissionController controller({8, 800, 2});
  Permits permits;
  EXPECT_EQ(Enter(controller, "ann", 2, permits), 2);
  EXPECT_EQ(Enter(controller, "ben", 1, permits), 1);
  RequestWork large{4000, 30, 0, 0, false}, small{70, 10, 0, 0, false};
  EXPECT_TRUE(permits[0]->Take(large, absl::InfiniteFuture()).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(permits[1]->Take(small, absl::InfiniteFuture())));
  EXPECT_TRUE(permits[2]->Take(small, absl::InfiniteFuture()).ok());
  permits.clear();
  EXPECT_EQ(Enter(controller, "cleo", 1, permits), 1);
  EXPECT_TRUE(permits[0]->Take(large, absl::InfiniteFuture()).ok()) << "all was given back";
}

// A controller that has seen requests of 100 prompt tokens in 100 s, 3 neighbors and 7 steps in 100 s, 10 answer tokens
// in 100 s, and a retrieval of 20 s. Take reads the time for itself, so what a machine may stall for must be nothing
// beside these.
class DeadlineTest : public testing::Test {
 protected:
  DeadlineTest() {
    auto permit = controller_.Enter("ann");
    RequestWork work = Work(7);
    EXPECT_TRUE((*permit)->Take(work, SteadyNow()).ok()) << "nothing has been measured yet";
    (*permit)->Observe(work, {20, 100, 100, 100});
  }
  static RequestWork Work(int steps) { return {100, 10, 3, steps, true}; }

  absl::Status Take(RequestWork& work, double seconds) {
    auto permit = controller_.Enter("ann");
    if (!permit.ok()) return permit.status();
    return (*permit)->Take(work, SteadyNow() + absl::Seconds(seconds));
  }
  AdmissionController controller_{{64, 100000, 2}};
};

TEST_F(DeadlineTest, StepsAreCutToWhatFits) {
  RequestWork enough = Work(100);  // 20 + 100 + 30 + 10 s, and 10 s a step.
  EXPECT_TRUE(Take(enough, 1500).ok());
  EXPECT_EQ(enough.steps, 100);
  RequestWork cut = Work(100);
  EXPECT_TRUE(Take(cut, 665).ok());
  EXPECT_GE(cut.steps, 32);
  EXPECT_LE(cut.steps, 37);
  RequestWork none = Work(0);
  EXPECT_TRUE(Take(none, 200).ok());
  EXPECT_EQ(none.steps, 0);
}

TEST_F(DeadlineTest, WhatCannotMakeItIsRefusedAtOnceWithTheRightBlame) {
  RequestWork work = Work(100);
  EXPECT_TRUE(absl::IsDeadlineExceeded(Take(work, 100)));
  EXPECT_TRUE(absl::IsDeadlineExceeded(Take(work, -1)));
  Permits permits;
  Enter(controller_, "ann", 20, permits);  // Two run, 18 wait and so will ours: 19 / 2 times 300 s.
  const absl::Status queue = Take(work, 1000);
  EXPECT_TRUE(absl::IsResourceExhausted(queue)) << queue;
  EXPECT_GT(RetryAfterOf(queue).value_or(absl::ZeroDuration()), absl::Seconds(2000));
  RequestWork patient = Work(100);
  EXPECT_TRUE(Take(patient, 20000).ok());
  EXPECT_EQ(patient.steps, 100);
}

// Not what waits, but what the engine takes before it: of a caller with a hundred requests one for each of this one's.
TEST_F(DeadlineTest, TheQueueIsWhatGoesBeforeInFairOrder) {
  Permits crowd;
  Enter(controller_, "ben", 50, crowd);
  for (int i = 0; i < 10; ++i) {
    auto permit = controller_.Enter("ann");
    ASSERT_TRUE(permit.ok());
    RequestWork work = Work(7);
    EXPECT_TRUE((*permit)->Take(work, SteadyNow() + absl::Seconds(1000)).ok()) << "200 s of work, and one before it";
  }
  Permits own;
  Enter(controller_, "ann", 8, own);
  RequestWork work = Work(7);
  EXPECT_TRUE(absl::IsResourceExhausted(own.back()->Take(work, SteadyNow() + absl::Seconds(1000))));
}

// Calls that end at their deadline teach too: else the estimates of a server that got slower would stay what they were.
TEST_F(DeadlineTest, CallsEndedAtTheirDeadlineRaiseTheEstimates) {
  RequestWork work = Work(7);
  for (int i = 0; i < 12; ++i) {
    auto permit = controller_.Enter("ann");
    RequestWork own = Work(7);
    if ((*permit)->Take(own, SteadyNow() + absl::Seconds(5000)).ok()) (*permit)->ObserveLate(5000);
  }
  EXPECT_TRUE(absl::IsDeadlineExceeded(Take(work, 1000))) << "it took more than 5,000 s twelve times";
}

TEST(StageEstimates, AreMovingAveragesAndGrowOld) {
  StageEstimates estimates;
  const absl::Time now = absl::FromUnixSeconds(1000);
  EXPECT_FALSE(estimates.fresh(now));
  const RequestWork work{10, 10, 1, 4, true};
  estimates.Observe(work, {0.5, 1, 2, 3}, now);
  EXPECT_TRUE(estimates.fresh(now));
  EXPECT_FALSE(estimates.fresh(now + absl::Minutes(2)));
  EXPECT_NEAR(absl::ToDoubleSeconds(estimates.Service()), 6, 1e-9);
  EXPECT_NEAR(absl::ToDoubleSeconds(estimates.PerStep({})), 0.4, 1e-9);
  EXPECT_NEAR(absl::ToDoubleSeconds(estimates.WithoutSteps(work)), 0.5 + 1 + 0.4 + 0.3, 1e-9);
  estimates.Observe(work, {0.5, 6, 2, 3}, now);
  EXPECT_NEAR(absl::ToDoubleSeconds(estimates.Service()), 7, 1e-9);
  EXPECT_NEAR(absl::ToDoubleSeconds(estimates.WithoutSteps(work)), 0.5 + 2 + 0.4 + 0.3, 1e-9);
}

// The pass of a short prompt takes as long as that of one of many tokens; a mean of ratios would make of it 10 ms a
// token, and refuse long prompts for deadlines that they meet.
TEST(StageEstimates, OneTokenPromptsDoNotMakeLongOnesLookSlow) {
  StageEstimates estimates;
  const absl::Time now = absl::FromUnixSeconds(1000);
  const RequestWork single{1, 1, 0, 0, false}, large{1000, 1, 0, 0, false};
  for (int i = 0; i < 10; ++i) {
    estimates.Observe(large, {0, 0.1, 0, 0.001}, now);
    estimates.Observe(single, {0, 0.01, 0, 0.001}, now);
  }
  EXPECT_NEAR(absl::ToDoubleSeconds(estimates.WithoutSteps(large)), 0.1 + 0.001, 0.02);
}

// Of the same kind: units and answer tokens count by what was done, in the mean of both.
TEST(StageEstimates, ARequestThatDidLittleDoesNotMakeStepsLookSlowOrFast) {
  StageEstimates estimates;
  const absl::Time now = absl::FromUnixSeconds(1000);
  const RequestWork few{10, 1, 1, 0, true}, many{10, 100, 9, 90, true}, grid{10, 1, 1, 0, true, 1, 1, 3, 9};
  for (int i = 0; i < 20; ++i) {
    estimates.Observe(many, {0, 1, 9.9, 1}, now);
    estimates.Observe(few, {0, 1, 2, 0.5}, now);
    estimates.Observe(grid, {0, 1, 1, 0.01}, now);
  }
  EXPECT_NEAR(absl::ToDoubleSeconds(estimates.PerStep({})), 0.12, 0.02);
  const double prompt = 1, units = 10 * 0.12;
  EXPECT_NEAR(absl::ToDoubleSeconds(estimates.WithoutSteps(grid)), prompt + units + 0.015, 0.2);
}

// A step of twice the passes costs twice as much and takes twice as long, and says so of itself when it was measured.
TEST(StageEstimates, AStepOfMorePassesTakesLonger) {
  StageEstimates estimates;
  RequestWork plain, divided;
  plain.prepared_cases = divided.prepared_cases = 4;
  plain.steps = divided.steps = 10;
  divided.passes_per_step = 6;
  EXPECT_EQ(divided.Cost(), 2 * plain.Cost());
  estimates.Observe(divided, {0, 0, 2.4, 0}, absl::FromUnixSeconds(1000));
  EXPECT_NEAR(absl::ToDoubleSeconds(estimates.PerStep(plain)), 0.1, 1e-9);
  EXPECT_NEAR(absl::ToDoubleSeconds(estimates.PerStep(divided)), 0.2, 1e-9);
  RequestWork averaging = plain;
  averaging.passes_per_step = 0;
  EXPECT_NEAR(absl::ToDoubleSeconds(estimates.PerStep(averaging)), 0.1, 1e-9);
}

// A process that was frozen for an hour measured a request of an hour.
TEST(StageEstimates, BeginAnewOnceOld) {
  StageEstimates estimates;
  const absl::Time now = absl::FromUnixSeconds(1000);
  const RequestWork work{10, 10, 0, 0, false};
  estimates.Observe(work, {0, 3600, 0, 0}, now);
  estimates.Observe(work, {0, 1, 0, 0}, now + absl::Seconds(61));
  EXPECT_NEAR(absl::ToDoubleSeconds(estimates.WithoutSteps(work)), 1, 1e-9);
}

}  // namespace
}  // namespace c3po
