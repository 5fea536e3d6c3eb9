// The search of a calibration over a formula in place of a server.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "client/eval/calibration.h"
#include "client/eval/option_setting.h"
#include "tests/client/formula_scorer.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

TEST(Calibrate, ClimbsToTheBestPointAndMeasuresItOnOtherQuestions) {
  FormulaScorer scorer(Hill);
  const CalibrationSettings settings = Settings();
  const auto result = Calibrate(settings, scorer);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->chosen.k(), 12);
  EXPECT_EQ(result->chosen.steps(), 10);
  EXPECT_TRUE(result->helps());
  EXPECT_NEAR(result->accuracy_none, 0.4, 0.06);
  EXPECT_NEAR(result->accuracy, 0.8, 0.06);
  EXPECT_NEAR(result->lift.value, result->accuracy - result->accuracy_none, 1e-9);
  EXPECT_GT(result->lift.low, 0);
  EXPECT_EQ(result->worsened, 0);
  EXPECT_EQ(result->questions, 20);
  EXPECT_NEAR(result->seconds, 1.1, 1e-9);
  // None, start, two of k (its own value is not tried again), two of steps.
  EXPECT_EQ(result->tried.size(), 6);
  EXPECT_EQ(result->tried[0].label, "none");
  // Only the winner and the model as it is saw the check questions.
  EXPECT_EQ(std::count_if(scorer.asked.begin(), scorer.asked.end(), [](size_t q) { return q >= 20; }), 40);
}

TEST(Calibrate, PointsFarBehindAreAskedHalf) {
  FormulaScorer scorer(Hill);
  CalibrationSettings settings = Settings();
  settings.start.set_k(12);
  settings.start.set_steps(10);
  const auto result = Calibrate(settings, scorer);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->chosen.k(), 12);
  const auto dropped = std::find_if(result->tried.begin(), result->tried.end(),
                                    [](const TriedPoint& point) { return point.axis == "k" && point.label == "3"; });
  ASSERT_NE(dropped, result->tried.end());
  EXPECT_EQ(dropped->questions, 10);
}

TEST(Calibrate, SaysWhenNothingHelps) {
  FormulaScorer scorer([](const Options& options) { return options.method() == v1::METHOD_NONE ? 0.7 : 0.5; });
  const auto result = Calibrate(Settings(), scorer);
  ASSERT_TRUE(result.ok());
  EXPECT_FALSE(result->helps());
  EXPECT_LT(result->lift.value, 0);
  FormulaScorer same([](const Options&) { return 0.5; });
  EXPECT_FALSE(Calibrate(Settings(), same)->helps());
}

TEST(Calibrate, TheMaximumOfNoiseIsNotTakenForLift) {
  // Each point is right on another half of the questions: the search finds a "best", the check finds no lift.
  FormulaScorer scorer([](const Options&) { return 0.5; });
  scorer.adorn = [](const Options& options, size_t question, ItemResult* result) {
    const size_t hash = (question * 2654435761u) ^ (options.k() * 40503u) ^ (options.steps() * 9973u);
    if (options.method() != v1::METHOD_NONE) result->correct = question < 20 ? hash % 3 != 0 : result->correct;
  };
  const auto result = Calibrate(Settings(), scorer);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->lift.value, 0);
  EXPECT_FALSE(result->helps());
}

TEST(Calibrate, RefusedPointsAreNotedAndOtherErrorsEndTheSearch) {
  FormulaScorer scorer([](const Options& options) -> absl::StatusOr<double> {
    if (options.k() == 12) return absl::InvalidArgumentError("k: too many");
    return Hill(options);
  });
  const auto result = Calibrate(Settings(), scorer);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->chosen.k(), 6);
  EXPECT_TRUE(std::any_of(result->tried.begin(), result->tried.end(),
                          [](const TriedPoint& point) { return point.refused == "k: too many"; }));
  FormulaScorer gone([](const Options& options) -> absl::StatusOr<double> {
    if (options.k() == 6) return absl::UnavailableError("gone");
    return 0.5;
  });
  EXPECT_EQ(Calibrate(Settings(), gone).status().code(), absl::StatusCode::kUnavailable);
}

TEST(Calibrate, TheBudgetEndsTheSearchNotTheCheck) {
  FormulaScorer scorer(Hill);
  CalibrationSettings settings = Settings();
  settings.now = [&] { return scorer.now; };
  settings.budget = absl::Seconds(70);  // None and the start cost 60, one more point is begun.
  const auto result = Calibrate(settings, scorer);
  ASSERT_TRUE(result.ok());
  EXPECT_TRUE(result->budget_spent);
  EXPECT_EQ(result->tried.size(), 3);
  EXPECT_EQ(result->questions, 20);
}

// One question in 30 more at 13 times the time: 3.3 points for what must bring 3.7.
TEST(Calibrate, TimeMustBringSomething) {
  const auto calibrated = [](double dear, double seconds, double cost_weight) {
    FormulaScorer scorer([](const Options&) { return 0.5; });
    scorer.adorn = [=](const Options& options, size_t question, ItemResult* result) {
      const bool none = options.method() == v1::METHOD_NONE, is_dear = options.k() == 12;
      result->correct = static_cast<double>(question % 30) < (none ? 10 : is_dear ? 20 + dear : 20);
      result->seconds = none ? 0.1 : is_dear ? 0.1 * seconds : 0.1;
    };
    CalibrationSettings settings = Settings();
    settings.questions.clear();
    settings.check.clear();
    for (size_t i = 0; i < 60; ++i) (i < 30 ? settings.questions : settings.check).push_back(i);
    settings.cost_weight = cost_weight;
    settings.drop_margin = 1;
    const auto result = Calibrate(settings, scorer);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : CalibrationResult();
  };
  EXPECT_EQ(calibrated(1, 13, 0.01).chosen.k(), 3);
  EXPECT_EQ(calibrated(1, 13, 0).chosen.k(), 12);     // Where time is free,
  EXPECT_EQ(calibrated(2, 13, 0.01).chosen.k(), 12);  // or two questions are gained,
  EXPECT_EQ(calibrated(1, 2, 0.01).chosen.k(), 12);   // or for twice the time.
  // At equal answers the quicker one is taken, though it comes later.
  const CalibrationResult equal = calibrated(0, 0.5, 0.01);
  EXPECT_EQ(equal.chosen.k(), 3);  // Quicker than the model as it is counts as free.
}

// The whole of it against the model as it is: a lift of one question in 30 is not worth 13 times its time.
TEST(Calibrate, ALiftThatItsTimeIsNotWorthDoesNotHelp) {
  for (const int gained : {1, 2}) {
    FormulaScorer scorer([](const Options&) { return 0.5; });
    scorer.adorn = [gained](const Options& options, size_t question, ItemResult* result) {
      const bool none = options.method() == v1::METHOD_NONE;
      result->correct = question % 30 < static_cast<size_t>(none ? 20 : 20 + gained);
      result->seconds = none ? 0.1 : 1.3;
    };
    CalibrationSettings settings = Settings();
    settings.questions.clear();
    settings.check.clear();
    for (size_t i = 0; i < 60; ++i) (i < 30 ? settings.questions : settings.check).push_back(i);
    const auto result = Calibrate(settings, scorer);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_NEAR(result->lift.value, gained / 30.0, 1e-9);
    EXPECT_EQ(result->helps(), gained == 2);
  }
}

TEST(Calibrate, APointThatGivesNoNumbersIsLeftAndSoIsAQuestion) {
  FormulaScorer scorer([](const Options& options) -> absl::StatusOr<double> {
    if (options.k() == 12) return absl::InternalError("the neighbors' loss is not finite");
    return Hill(options);
  });
  scorer.fails_on = {3, 25};
  CalibrationSettings settings = Settings();
  const auto result = Calibrate(settings, scorer);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->chosen.k(), 6);
  EXPECT_EQ(result->unanswered, 2);
  EXPECT_EQ(result->questions, 19);
  EXPECT_EQ(result->tried[0].questions, 19);
}

TEST(Calibrate, GateLeavesFarNeighborsAlone) {
  // Questions with an odd number have far neighbors, and re-mixing gets them wrong that were right.
  FormulaScorer scorer([](const Options&) { return 0.5; });
  scorer.adorn = [](const Options& options, size_t question, ItemResult* result) {
    const bool far = question % 2 == 1;
    if (options.method() == v1::METHOD_NONE) {
      result->correct = far;
    } else {
      result->correct = !far;
      result->neighbor_distances = {far ? 1.2 : 0.3};
    }
  };
  const auto result = Calibrate(Settings(), scorer);
  ASSERT_TRUE(result.ok());
  EXPECT_GE(result->chosen.gate().max_neighbor_distance(), 0.3);
  EXPECT_LT(result->chosen.gate().max_neighbor_distance(), 1.2);
  EXPECT_TRUE(result->chosen.gate().enabled());
  EXPECT_EQ(result->gated, 10);
  EXPECT_EQ(result->worsened, 0);
  EXPECT_EQ(result->accuracy, 1.0);
  EXPECT_THAT(result->gate, HasSubstr("farther than"));
}

TEST(Calibrate, GateLeavesSureAnswersAlone) {
  FormulaScorer scorer([](const Options&) { return 0.5; });
  scorer.adorn = [](const Options& options, size_t question, ItemResult* result) {
    const bool sure = question % 2 == 1;
    result->gold = 0;
    result->token_counts = {1, 1};
    result->log_likelihoods = {std::log(sure ? 0.97 : 0.45), std::log(sure ? 0.03 : 0.55)};
    result->correct = options.method() == v1::METHOD_NONE ? sure : !sure;
  };
  const auto result = Calibrate(Settings(), scorer);
  ASSERT_TRUE(result.ok());
  EXPECT_TRUE(result->chosen.gate().has_max_base_confidence());
  EXPECT_LE(result->chosen.gate().max_base_confidence(), 0.97);
  EXPECT_EQ(result->accuracy, 1.0);
}

// Where the optimized model is unsure it is wrong: setting these answers aside keeps the lift and takes the harm.
TEST(Calibrate, GateSetsAsideUnsureOptimizedAnswers) {
  FormulaScorer scorer([](const Options&) { return 0.5; });
  scorer.adorn = [](const Options& options, size_t question, ItemResult* result) {
    const bool unsure = question % 4 == 0, optimized = options.method() != v1::METHOD_NONE;
    result->gold = 0;
    result->token_counts = {2, 3};
    result->log_likelihoods = {std::log(optimized && !unsure ? 0.9 : 0.52) * 2,
                               std::log(optimized && !unsure ? 0.1 : 0.48) * 3};
    result->correct = optimized ? !unsure : unsure;
  };
  const auto result = Calibrate(Settings(), scorer);
  ASSERT_TRUE(result.ok());
  EXPECT_GT(result->chosen.gate().min_optimized_confidence(), 0.52);
  EXPECT_LE(result->chosen.gate().min_optimized_confidence(), 0.9);
  EXPECT_EQ(result->worsened, 0);
  EXPECT_EQ(result->accuracy, 1.0);
  EXPECT_THAT(result->gate, HasSubstr("less than"));
}

// The model as it is answers the first 12 of 40 right; descent the others. By chance or by order, one half would see
// little but harm.
TEST(Calibrate, DividesQuestionsSoThatBothHalvesAreAlike) {
  FormulaScorer scorer([](const Options&) { return 0.5; });
  scorer.adorn = [](const Options& options, size_t question, ItemResult* result) {
    result->gold = static_cast<int>(question % 2);
    result->correct = (options.method() == v1::METHOD_NONE) == (question < 12);
  };
  CalibrationSettings settings = Settings();
  settings.questions.insert(settings.questions.end(), settings.check.begin(), settings.check.end());
  settings.check.clear();
  const auto result = Calibrate(settings, scorer);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->questions, 20);
  EXPECT_EQ(result->improved, 14);
  EXPECT_EQ(result->worsened, 6);
  EXPECT_EQ(result->tried[0].questions, 20);
  EXPECT_DOUBLE_EQ(result->tried[0].accuracy, 0.3);
  // The winner and the model as it is saw the questions of the check, each once.
  std::map<size_t, int> times;
  for (const size_t question : scorer.asked) ++times[question];
  EXPECT_EQ(std::count_if(times.begin(), times.end(), [](const auto& entry) { return entry.second == 2; }), 20);
  EXPECT_EQ(std::count_if(times.begin(), times.end(),
                          [](const auto& entry) { return entry.second == 2 && entry.first % 2 == 0; }),
            10);
}

TEST(Calibrate, NeedsQuestionsOnBothSides) {
  FormulaScorer scorer(Hill);
  CalibrationSettings settings = Settings();
  settings.check.clear();
  settings.questions.resize(1);
  EXPECT_EQ(Calibrate(settings, scorer).status().code(), absl::StatusCode::kInvalidArgument);
  settings.questions.clear();
  EXPECT_EQ(Calibrate(settings, scorer).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ApplyPatch, LayersReplaceOthersMerge) {
  Options options, patch;
  options.add_critical_layers(1);
  options.set_epsilon(0.5);
  options.set_steps(7);
  patch.add_critical_layers(2);
  patch.add_critical_layers(3);
  patch.set_k(4);
  ApplyPatch(patch, &options);
  EXPECT_EQ(OptionsJson(options), R"({"k":4,"steps":7,"critical_layers":[2,3]})");
}

TEST(CalibrationAxes, LeaveOutWhatIsFixedOrMissing) {
  CalibrationScope scope;
  scope.moe_layers = 30;
  scope.experts = 32;
  scope.references = 10;
  scope.has_choices = true;
  const auto labels = [](const std::vector<CalibrationAxis>& axes) {
    std::vector<std::string> all;
    for (const CalibrationAxis& axis : axes) {
      for (const CalibrationCandidate& candidate : axis.candidates) all.push_back(axis.name + "=" + candidate.label);
    }
    return all;
  };
  const auto free = labels(CalibrationAxes(scope));
  EXPECT_THAT(free, testing::Contains("critical layers=last 30"));
  EXPECT_THAT(free, testing::Contains("k=6"));
  EXPECT_THAT(free, testing::Contains("setting=few samples, two steps"));
  EXPECT_THAT(free, testing::Contains("setting=the server's defaults"));
  EXPECT_THAT(free, testing::Not(testing::Contains("k=12")));  // More than the collection holds.
  EXPECT_THAT(free, testing::Not(testing::Contains("setting=collection prior")));
  scope.has_prior = true;
  scope.fixed.set_k(5);
  scope.fixed.set_steps(3);
  const std::vector<CalibrationAxis> axes = CalibrationAxes(scope);
  const auto fixed = labels(axes);
  EXPECT_THAT(fixed, testing::Contains("setting=collection prior"));
  EXPECT_THAT(fixed, testing::Not(testing::Contains("k=3")));
  EXPECT_THAT(fixed, testing::Not(testing::Contains("steps=10")));
  EXPECT_THAT(fixed, testing::Not(testing::Contains("setting=few samples, two steps")));  // The same as few samples.
  EXPECT_EQ(axes[0].candidates[0].patch.k(), 5);
  EXPECT_EQ(axes[0].candidates[0].patch.steps(), 3);
}

}  // namespace
}  // namespace c3po
