// What a calibration concludes where questions share their choices: over simulated models whose truth is known.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "client/eval/calibration.h"
#include "tests/client/formula_scorer.h"
#include "tests/client/simulated_model.h"

namespace c3po {
namespace {

using Scores = SimulatedModel::Scores;

constexpr int kSeeds = 100;
constexpr int kSeedsRight = 95;
constexpr size_t kQuestions = 120;  // Half search, half check.

// Three values of k and of the steps beside the start's: seven points at most.
CalibrationSettings SettingsOver(const SimulatedModel& model) {
  CalibrationSettings settings = Settings();
  settings.questions.resize(kQuestions);
  std::iota(settings.questions.begin(), settings.questions.end(), size_t{0});
  settings.check.clear();
  settings.labels = model.LabelsOf(kQuestions);
  settings.axes[0].candidates.push_back(Patch("24", {{"k", "24"}}));
  return settings;
}

// A number that is another for every point.
uint64_t StreamOf(const Options& options) {
  return options.method() == v1::METHOD_NONE ? 0 : 1 + options.k() * 1000 + options.steps();
}

// Leans to the first label by `lean` times what would make it even.
std::vector<double> Bias(size_t labels, double lean) {
  std::vector<double> bias(labels, 0.0);
  bias[0] = lean;
  return bias;
}

// How often each outcome comes of simulations with seeds 1 to kSeeds.
std::map<CalibrationOutcome, int> Outcomes(size_t labels, const SimulatedModel::Formula& formula) {
  std::map<CalibrationOutcome, int> outcomes;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SimulatedModel model(seed, labels, formula);
    const auto result = Calibrate(SettingsOver(model), model);
    EXPECT_TRUE(result.ok()) << "seed " << seed << ": " << result.status();
    if (result.ok()) ++outcomes[result->outcome];
  }
  return outcomes;
}

class CalibrateOverLabels : public testing::TestWithParam<size_t> {};
INSTANTIATE_TEST_SUITE_P(Labels, CalibrateOverLabels, testing::Values(2, 3));

// Every point takes away another part of the bias, and nothing else: raw accuracy rises by tens of points, and every
// point is as good as the model alone once either has an offset.
TEST_P(CalibrateOverLabels, AConstantShiftEndsWithTheOffsetOnly) {
  auto outcomes = Outcomes(GetParam(), [](const Options& options) {
    const double lean = options.method() == v1::METHOD_NONE ? 2.5 : 2.5 - 0.1 * options.k() / 24 * options.steps();
    return Scores{1.2, Bias(GetParam(), lean)};
  });
  EXPECT_EQ(outcomes[CalibrationOutcome::kOffsetOnly], kSeeds);
}

// The same, and the method answers otherwise, neither better nor worse: a third of its noise is another for each point,
// so that the search finds a point which is better on its own half by chance.
TEST_P(CalibrateOverLabels, AShiftAndOtherNoiseEndsWithTheOffsetOnly) {
  auto outcomes = Outcomes(GetParam(), [](const Options& options) {
    const bool none = options.method() == v1::METHOD_NONE;
    return Scores{1.2, Bias(GetParam(), none ? 2.5 : 1.0), none ? 1.0 : std::sqrt(2.0 / 3), StreamOf(options)};
  });
  EXPECT_GE(outcomes[CalibrationOutcome::kOffsetOnly], kSeedsRight);
}

// The method separates the labels better. Its bias stays as it was, so that without an offset little of it is seen.
TEST_P(CalibrateOverLabels, AMethodThatSeparatesEndsWithTheMethod) {
  auto outcomes = Outcomes(GetParam(), [](const Options& options) {
    const bool none = options.method() == v1::METHOD_NONE;
    return Scores{none ? 0.8 : 2.4 + 0.02 * options.k(), Bias(GetParam(), 2.5), none ? 1.0 : std::sqrt(2.0 / 3),
                  StreamOf(options)};
  });
  EXPECT_GE(outcomes[CalibrationOutcome::kMethod], kSeedsRight);
}

// Scores say nothing and lean nowhere; every point is other noise.
TEST_P(CalibrateOverLabels, PureNoiseEndsWithNothing) {
  auto outcomes = Outcomes(GetParam(), [](const Options& options) {
    const bool none = options.method() == v1::METHOD_NONE;
    return Scores{0, Bias(GetParam(), 0), none ? 1.0 : std::sqrt(1.0 / 3), StreamOf(options)};
  });
  EXPECT_GE(outcomes[CalibrationOutcome::kNothing], kSeedsRight);
}

// A shift of the labels raises raw accuracy by far more than what separates them a little.
TEST(CalibrateWithLabels, APointThatSeparatesIsPreferredToOneThatShifts) {
  SimulatedModel model(7, 2, [](const Options& options) {
    if (options.k() == 6) return Scores{1.2, {0, 0}};   // Even, and as good as the model alone.
    if (options.k() == 12) return Scores{2.4, {4, 0}};  // Leans more than the model alone.
    return Scores{1.2, {3, 0}};
  });
  CalibrationSettings settings = SettingsOver(model);
  const auto result = Calibrate(settings, model);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->chosen.k(), 12);
  EXPECT_TRUE(result->use_offset());
  const auto shifted = std::find_if(result->tried.begin(), result->tried.end(),
                                    [](const TriedPoint& point) { return point.axis == "k" && point.label == "6"; });
  const auto separated = std::find_if(result->tried.begin(), result->tried.end(),
                                      [](const TriedPoint& point) { return point.label == "12"; });
  EXPECT_GT(shifted->accuracy, separated->accuracy);
  EXPECT_LT(*shifted->accuracy_after_offset, *separated->accuracy_after_offset);
  EXPECT_NEAR(shifted->utility, (*shifted->accuracy_after_offset + *shifted->auc) / 2, 1e-12);
  // Without labels the shift wins.
  settings.labels = {};
  const auto raw = Calibrate(settings, model);
  ASSERT_TRUE(raw.ok());
  EXPECT_EQ(raw->chosen.k(), 6);
  EXPECT_FALSE(raw->beyond);
}

// Every point orders the questions worse: none leads, and the model alone with its offset is what is left.
TEST(CalibrateWithLabels, APointThatOrdersWorseNeverLeads) {
  SimulatedModel model(3, 2, [](const Options& options) {
    return options.method() == v1::METHOD_NONE ? Scores{3, {3, 0}} : Scores{0.5, {0, 0}};
  });
  const auto result = Calibrate(SettingsOver(model), model);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->none_led);
  EXPECT_EQ(result->outcome, CalibrationOutcome::kOffsetOnly);
  EXPECT_EQ(result->chosen.method(), v1::METHOD_NONE);
  EXPECT_EQ(result->beyond->lift.improved + result->beyond->lift.worsened, 0);
  EXPECT_GT(result->beyond->offset.difference.low, 0);
  for (const TriedPoint& point : result->tried) EXPECT_FALSE(point.leads) << point.label;
  EXPECT_TRUE(result->tried[1].orders_worse);
}

TEST(CalibrateWithLabels, AnAnswerWithoutScoresIsAnError) {
  FormulaScorer scorer(Hill);
  CalibrationSettings settings = Settings();
  settings.labels = SimulatedModel(1, 2, nullptr).LabelsOf(40);
  EXPECT_EQ(Calibrate(settings, scorer).status().code(), absl::StatusCode::kInternal);
}

LabelScores TwoLabels(const std::vector<double>& margins, const std::vector<int>& gold) {
  LabelScores scores;
  scores.labels = 2;
  for (const double margin : margins) scores.scores.insert(scores.scores.end(), {margin, 0});
  scores.gold = gold;
  return scores;
}

// The threshold lies between 2 and 3 in the search, between -1 and 0 in the check: what the check's own questions would
// tell has no part in it.
TEST(MeasureBeyondLabels, OffsetsAreOfTheSearchsQuestionsAlone) {
  HalvesOfScores scores;
  scores.search_none = scores.search = TwoLabels({1, 2, 3, 4, 1.5, 3.5}, {1, 1, 0, 0, 1, 0});
  scores.check_none = TwoLabels({-2, -1, 0, 1}, {1, 1, 0, 0});
  scores.check = TwoLabels({1, 2, 3, 4}, {1, 1, 0, 0});
  const auto beyond = MeasureBeyondLabels(scores, {false, false, true, true});
  ASSERT_TRUE(beyond.ok()) << beyond.status();
  EXPECT_EQ(beyond->accuracy_none, 0.5);  // All below the threshold: label 1.
  EXPECT_EQ(beyond->accuracy, 1.0);
  EXPECT_EQ(beyond->lift.improved, 2);
  EXPECT_EQ(beyond->lift.worsened, 0);
  EXPECT_EQ(beyond->p_value, 0.5);
  EXPECT_EQ(beyond->offset.improved, 2);
  EXPECT_EQ(beyond->offset.worsened, 2);
  EXPECT_EQ(beyond->both.improved, 2);
  EXPECT_EQ(beyond->auc->value, 1.0);
  EXPECT_EQ(beyond->auc_difference->difference.value, 0.0);
  scores.search = {};
  EXPECT_EQ(MeasureBeyondLabels(scores, {false, false, true, true}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(DecideOutcome, WeighsLiftOrderCostAndTheOffset) {
  BeyondLabels shown;
  shown.lift.difference = {0.1, 0.02, 0.18};
  shown.both.difference = {0.2, 0.1, 0.3};
  shown.offset.difference = {0.1, 0.01, 0.2};
  shown.auc_difference = AucDifference{{0.05, -0.01, 0.11}, 0.1};
  EXPECT_EQ(DecideOutcome(shown, 0.03), CalibrationOutcome::kMethod);
  EXPECT_EQ(DecideOutcome(shown, 0.1), CalibrationOutcome::kOffsetOnly);  // As dear as what it brings.
  BeyondLabels worse = shown;
  worse.auc_difference->difference = {-0.05, -0.09, -0.01};
  EXPECT_EQ(DecideOutcome(worse, 0), CalibrationOutcome::kOffsetOnly);
  BeyondLabels unshown = shown;
  unshown.lift.difference.low = -0.01;
  EXPECT_EQ(DecideOutcome(unshown, 0), CalibrationOutcome::kOffsetOnly);
  unshown.offset.difference.low = -0.01;
  EXPECT_EQ(DecideOutcome(unshown, 0), CalibrationOutcome::kNothing);
  unshown.auc_difference->difference.low = 0.01;  // The order shows what few answers do not.
  EXPECT_EQ(DecideOutcome(unshown, 0), CalibrationOutcome::kMethod);
  unshown.lift.difference.value = 0;
  EXPECT_EQ(DecideOutcome(unshown, 0), CalibrationOutcome::kNothing);
  BeyondLabels behind = shown;  // Ahead of the model alone with its offset, which harms it.
  behind.both.difference = {-0.02, -0.1, 0.06};
  EXPECT_NE(DecideOutcome(behind, 0), CalibrationOutcome::kMethod);
  BeyondLabels no_auc = shown;
  no_auc.auc_difference.reset();
  EXPECT_EQ(DecideOutcome(no_auc, 0), CalibrationOutcome::kMethod);
}

TEST(LabelsOfQuestions, AreTheChoicesThatAllQuestionsShareInAnyOrder) {
  Task task;
  for (const std::vector<std::string>& choices :
       {std::vector<std::string>{" no", " yes"}, {" yes", " no"}, {" no", " yes"}}) {
    TaskItem& item = task.items.emplace_back();
    item.choices = choices;
    item.gold = 1;
  }
  const QuestionLabels labels = LabelsOfQuestions(task);
  EXPECT_EQ(labels.labels, 2);
  EXPECT_EQ(labels.of_choices[1], (std::vector<int>{1, 0}));
  // Scores follow the labels, not the choices.
  ItemResult answer;
  answer.log_likelihoods = {-4, -3};
  answer.token_counts = {2, 1};
  answer.byte_counts = {3, 2};
  answer.gold = 1;
  const auto scores = LabelScoresOf(labels, {1}, {answer});
  ASSERT_TRUE(scores.ok()) << scores.status();
  EXPECT_EQ(scores->scores, (std::vector<double>{-3, -2}));  // Per token.
  EXPECT_EQ(scores->gold, (std::vector<int>{0}));
  task.items[2].gold = 2;  // None of its choices.
  EXPECT_FALSE(LabelsOfQuestions(task).any());
  task.items[2].gold = 0;
  task.items[2].choices[0] = " perhaps";
  EXPECT_FALSE(LabelsOfQuestions(task).any());
  EXPECT_TRUE(LabelsOfQuestions(task).of_choices.empty());
  task.items.resize(2);
  task.kind = TaskKind::kGeneration;
  EXPECT_FALSE(LabelsOfQuestions(task).any());
}

TEST(CalibrationAxes, WithLabelsWhatGoesBeyondTheOffsetComesFirst) {
  CalibrationScope scope;
  scope.moe_layers = 30;
  scope.experts = 32;
  scope.references = 100;
  scope.has_choices = scope.has_labels = scope.has_prior = true;
  const auto names = [](const std::vector<CalibrationAxis>& axes) {
    std::vector<std::string> all;
    for (const CalibrationAxis& axis : axes) all.push_back(axis.name);
    return all;
  };
  std::vector<CalibrationAxis> axes = CalibrationAxes(scope);
  std::vector<std::string> first = names(axes);
  first.resize(6);
  EXPECT_THAT(first, testing::ElementsAre("setting", "objective", "trust", "balance", "neighbors by", "neighborhoods"));
  const Options pairs = axes[0].candidates[0].patch;
  EXPECT_EQ(pairs.objective(), v1::OBJECTIVE_PAIRS);
  EXPECT_TRUE(pairs.balance());
  EXPECT_EQ(pairs.trust(), 0.1);
  EXPECT_EQ(axes[0].candidates[1].label, "collection prior");
  // One whole setting leaves nothing of another.
  Options options = pairs;
  ApplyPatch(axes[0].candidates[2].patch, &options);
  EXPECT_EQ(axes[0].candidates[2].label, "few samples");
  EXPECT_FALSE(options.balance());
  EXPECT_EQ(options.trust(), 0);
  EXPECT_EQ(options.objective(), v1::OBJECTIVE_CHOICES);
  // Questions with choices of their own have no pairs with the same ones.
  scope.has_labels = false;
  axes = CalibrationAxes(scope);
  EXPECT_THAT(names(axes), testing::AllOf(testing::Contains("trust"), testing::Contains("neighborhoods"),
                                          testing::Not(testing::Contains("balance"))));
  EXPECT_EQ(axes[0].candidates[0].label, "few samples");
  for (const CalibrationAxis& axis : axes) {
    for (const CalibrationCandidate& candidate : axis.candidates) {
      EXPECT_NE(candidate.patch.objective(), v1::OBJECTIVE_PAIRS) << axis.name;
    }
  }
}

}  // namespace
}  // namespace c3po
