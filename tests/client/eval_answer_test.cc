// How an answer is judged, and the two baselines that read neighbors.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "client/eval/answer_extractor.h"
#include "client/eval/benchmark_format.h"
#include "client/eval/choice_metrics.h"
#include "client/eval/neighbor_baselines.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TaskItem Item(std::vector<std::string> choices, int gold) {
  TaskItem item;
  item.choices = std::move(choices);
  item.gold = gold;
  return item;
}

TEST(JudgeChoices, EachMetricHasItsOwnWinner) {
  // Sum: "b". Per byte: "a longer one" (12 bytes). Per token: " ccc" (3 tokens).
  const TaskItem item = Item({" a longer one", " b", " ccc"}, 0);
  Task task;
  ItemResult result;
  result.log_likelihoods = {-4.0, -1.5, -3.0};
  result.token_counts = {3, 1, 3};
  task.metric = Metric::kRaw;
  JudgeChoices(task, item, &result);
  EXPECT_THAT(result.byte_counts, ElementsAre(12, 1, 3));
  EXPECT_EQ(result.predicted, 1);
  EXPECT_FALSE(result.correct_raw);
  EXPECT_TRUE(result.correct_per_byte);
  EXPECT_FALSE(result.correct_per_token);
  EXPECT_FALSE(result.correct);
  task.metric = Metric::kPerByte;
  JudgeChoices(task, item, &result);
  EXPECT_EQ(result.predicted, 0);
  EXPECT_TRUE(result.correct);
  task.metric = Metric::kPerToken;
  JudgeChoices(task, item, &result);
  EXPECT_EQ(result.predicted, 2);
}

TEST(JudgeChoices, AnOffsetsScoresChooseWhateverTheMetric) {
  const TaskItem item = Item({" a", " b", " c"}, 1);
  ItemResult result;
  result.task = "letters";
  result.id = "1";
  result.method = "offset";
  result.log_likelihoods = {-1, -2, -3};
  result.token_counts = {1, 1, 1};
  result.offset_scores = {-1, 0.5, 0.5};
  for (const Metric metric : {Metric::kRaw, Metric::kPerByte, Metric::kPerToken}) {
    Task task;
    task.metric = metric;
    JudgeChoices(task, item, &result);
    EXPECT_EQ(result.predicted, 1);
    EXPECT_TRUE(result.correct && result.correct_raw && result.correct_per_byte && result.correct_per_token);
  }
  EXPECT_EQ(result.byte_counts.size(), 3u);
  EXPECT_EQ(ParseItemResult(ToJsonLine(result)).status().code(), absl::StatusCode::kOk);
  EXPECT_EQ(ParseItemResult(ToJsonLine(result))->offset_scores, result.offset_scores);
}

TEST(JudgeChoices, BytesAreThoseOfUtf8AndEqualScoresGiveTheFirst) {
  Task task;
  task.metric = Metric::kRaw;
  ItemResult result;
  result.log_likelihoods = {-1, -1};
  result.token_counts = {1, 1};
  JudgeChoices(task, Item({" é", "x"}, 1), &result);
  EXPECT_THAT(result.byte_counts, ElementsAre(2, 1));
  EXPECT_EQ(result.predicted, 0);
  EXPECT_FALSE(result.correct);
}

TEST(GoldProbability, IsTheSoftmaxOfTheMetricsScores) {
  ItemResult result;
  result.log_likelihoods = {std::log(0.3), std::log(0.1)};
  result.token_counts = {1, 1};
  result.gold = 0;
  EXPECT_NEAR(GoldProbability(result, Metric::kRaw), 0.75, 1e-12);
  ItemResult voted;
  voted.correct = true;
  EXPECT_EQ(GoldProbability(voted, Metric::kRaw), 1.0);
}

std::string Extracted(const char* pattern, const char* text) {
  const auto extractor = AnswerExtractor::Create(pattern);
  EXPECT_TRUE(extractor.ok()) << extractor.status();
  return (*extractor)->Extract(text);
}

TEST(AnswerExtractor, TakesTheLastMatchAndItsGroup) {
  EXPECT_EQ(Extracted(kLastNumberPattern, "3 and 4 make 7, so 7 * $1,200.50 = 8,403.5."), "8,403.5");
  EXPECT_EQ(Extracted("answer is (\\w+)", "The answer is one. No, the answer is two."), "two");
  EXPECT_EQ(Extracted("x", "nothing"), "");
  EXPECT_EQ(Extracted("", "all of it"), "all of it");
  EXPECT_EQ(Extracted("a*", "é"), "");  // An empty match never splits a character.
}

TEST(AnswerExtractor, BadPatternsSayWhere) {
  const auto extractor = AnswerExtractor::Create("(a");
  ASSERT_FALSE(extractor.ok());
  EXPECT_THAT(std::string(extractor.status().message()), HasSubstr("character 2"));
}

TEST(AnswerExtractor, EndlessBacktrackingIsNoAnswer) {
  const std::string text(5000, 'a');
  EXPECT_EQ(Extracted("(a+)+(a+)+(a+)+$b", text.c_str()), "");
}

TEST(NormalizeAnswer, LeavesOutWhatDoesNotMatter) {
  EXPECT_EQ(NormalizeAnswer("  The  Answer.\n"), "the answer");
  EXPECT_EQ(NormalizeAnswer("$1,234.00"), "1234");
  EXPECT_EQ(NormalizeAnswer("-$5"), "-5");
  EXPECT_EQ(NormalizeAnswer("3.50"), "3.50");
  EXPECT_EQ(NormalizeAnswer("a, b"), "a, b");
  EXPECT_EQ(NormalizeAnswer(""), "");
}

std::vector<LabelledNeighbor> Neighbors(std::vector<std::pair<double, std::string>> list) {
  std::vector<LabelledNeighbor> neighbors;
  for (auto& [distance, answer] : list) neighbors.push_back({"id", distance, "Q:", answer});
  return neighbors;
}

TEST(VotedAnswer, WeightsByTheKernel) {
  // exp(-0.1^2 / 2) of "yes" against 2 exp(-1/2) of "no" with sigma 1: 0.995 < 1.213.
  const auto neighbors = Neighbors({{0.1, " yes"}, {1.0, " no"}, {1.0, "no"}});
  EXPECT_EQ(VotedAnswer(neighbors), "no");
  // A narrow kernel leaves the nearest alone.
  EXPECT_EQ(VotedAnswer(neighbors, {v1::KERNEL_GAUSSIAN, 0.1}), "yes");
}

TEST(VotedAnswer, TakesEveryKernelOfTheOptimizingMethods) {
  // "yes" at 0.2 against two "no" at 1.2, sigma 0.6. Matern 5/2: s = 0.745 and 4.472, 0.914 against 2 * 0.139;
  // linear: 0.98 against 2 * 0.28; polynomial: 1.98^2 = 3.920 against 2 * 1.28^2 = 3.277; at 1.1 it is 2 * 1.395^2.
  const auto neighbors = Neighbors({{0.2, "yes"}, {1.2, "no"}, {1.2, "no"}});
  for (const v1::Kernel kernel : {v1::KERNEL_MATERN, v1::KERNEL_LINEAR, v1::KERNEL_POLYNOMIAL}) {
    EXPECT_EQ(VotedAnswer(neighbors, {kernel, 0.6}), "yes") << v1::Kernel_Name(kernel);
  }
  EXPECT_EQ(VotedAnswer(Neighbors({{0.2, "yes"}, {1.0, "no"}, {1.0, "no"}}), {v1::KERNEL_POLYNOMIAL, 0.6}), "no");
  EXPECT_EQ(VotedAnswer(Neighbors({{0.2, "yes"}, {0.8, "no"}, {0.8, "no"}}), {v1::KERNEL_LINEAR, 0.6}), "no");
}

TEST(VotedAnswer, TiesFallToTheNearest) {
  EXPECT_EQ(VotedAnswer(Neighbors({{0.0, "a"}, {0.0, "b"}})), "a");
  EXPECT_EQ(VotedAnswer(Neighbors({{0.0, "a"}, {0.0, "b"}, {0.0, "b"}})), "b");
  EXPECT_EQ(VotedAnswer({}), "");
}

TEST(VotedChoice, OnlyNeighborsWhoseAnswerIsAChoiceVote) {
  const TaskItem item = Item({" no", " yes"}, 1);
  EXPECT_EQ(VotedChoice(item, Neighbors({{0.1, "other"}, {0.2, "yes"}, {0.3, "no"}})), 1);
  EXPECT_EQ(VotedChoice(item, Neighbors({{0.1, "other"}})), -1);
  ItemResult result;
  JudgePrediction(item, -1, &result);
  EXPECT_FALSE(result.correct);
  JudgePrediction(item, 1, &result);
  EXPECT_TRUE(result.correct && result.correct_raw && result.correct_per_byte && result.correct_per_token);
}

TEST(InContextPrompt, NearestStandsLast) {
  std::vector<LabelledNeighbor> neighbors = {{"near", 0.1, "Q: near?\nA:", " n"}, {"far", 0.5, "Q: far?\nA:", " f"}};
  EXPECT_EQ(InContextPrompt(neighbors, "Q: mine?\nA:"), "Q: far?\nA: f\n\nQ: near?\nA: n\n\nQ: mine?\nA:");
  EXPECT_EQ(InContextPrompt({}, "Q"), "Q");
}

}  // namespace
}  // namespace c3po
