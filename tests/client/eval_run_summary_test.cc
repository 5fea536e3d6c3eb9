#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "client/eval/report_reading.h"
#include "client/eval/run_summary.h"
#include "tests/client/eval_run_folder.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class RunSummaryTest : public testing::Test {
 protected:
  RunSummaryTest() { run_.WriteRunJson(kEvalRunJson); }

  void AppendAll() {
    run_.AppendAnswers("sst2", "none", "11000000");
    run_.AppendAnswers("sst2", "ngd", "10111100");
    run_.AppendAnswers("sst2", "bound", "11111111");
    run_.AppendAnswers("sst2", "vote", "11110000");
    run_.AppendAnswers("mrpc", "none", "0011");
    run_.AppendAnswers("mrpc", "ngd", "1111");
    run_.AppendAnswers("mrpc", "bound", "1111");
    run_.AppendAnswers("mrpc", "vote", "0000");
    run_.AppendAnswers("arc", "none", "1100");
    run_.AppendAnswers("arc", "ngd", "0100");
    run_.AppendAnswers("arc", "bound", "1110");
  }

  RunSummary Summary() {
    const absl::StatusOr<RunSummary> summary = SummarizeRun(run_.path());
    EXPECT_TRUE(summary.ok()) << summary.status();
    return summary.ok() ? *summary : RunSummary();
  }

  EvalRunFolder run_;
};

TEST_F(RunSummaryTest, CountsOfATaskAreThoseOfItsItems) {
  AppendAll();
  const RunSummary summary = Summary();
  ASSERT_EQ(summary.tasks.size(), 3u);
  const ScopeSummary& sst2 = summary.tasks[0];
  EXPECT_EQ(sst2.items, 8);
  const MethodSummary* ngd = sst2.Find("ngd");
  ASSERT_NE(ngd, nullptr);
  EXPECT_EQ(ngd->right, 5);
  EXPECT_DOUBLE_EQ(ngd->accuracy.value, 5.0 / 8);
  ASSERT_TRUE(ngd->paired);
  EXPECT_EQ(ngd->paired->improved, 4);
  EXPECT_EQ(ngd->paired->worsened, 1);
  EXPECT_DOUBLE_EQ(ngd->paired->difference.value, 3.0 / 8);
  EXPECT_DOUBLE_EQ(ngd->paired->mcnemar.p_value, 12.0 / 32);
  EXPECT_DOUBLE_EQ(*ngd->paired->share_of_oracle, 0.5);  // The oracle gains 6 of 8.
  EXPECT_NEAR(ngd->mean_seconds, 0.235, 1e-12);
  EXPECT_NEAR(ngd->median_seconds, 0.235, 1e-12);
  EXPECT_EQ(ngd->mean_tokens, 32);
  EXPECT_EQ(ngd->gates.at("applied"), 4);
  EXPECT_EQ(ngd->loss_fell, 8);
  EXPECT_FALSE(sst2.Find("none")->paired);
  EXPECT_EQ(sst2.Find("bound")->role, MethodRole::kOracle);
}

// A label offset that the server applies to the model alone is neither the baseline nor a method that optimizes.
TEST_F(RunSummaryTest, TheModelAloneWithAnOffsetReadsReferencesOnly) {
  run_.WriteRunJson(R"json({"version": 1, "tasks": [{"name": "sst2", "kind": "choice", "metric": "raw", "items": 4}],
    "methods": [{"label": "offset", "kind": "score", "optimization": {"method": "METHOD_NONE", "use_offset": true}},
                {"label": "none", "kind": "score", "optimization": {"method": "METHOD_NONE", "use_offset": false}},
                {"label": "ngd+offset", "kind": "score",
                 "optimization": {"method": "METHOD_NEIGHBORHOOD_GRADIENT_DESCENT", "use_offset": true}}]})json");
  run_.AppendAnswers("sst2", "offset", "1100");
  run_.AppendAnswers("sst2", "none", "1000");
  run_.AppendAnswers("sst2", "ngd+offset", "1110");
  const RunSummary summary = Summary();
  EXPECT_EQ(summary.baseline, "none");
  EXPECT_EQ(summary.overall.Find("offset")->role, MethodRole::kLabelOffset);
  EXPECT_EQ(summary.overall.Find("offset")->paired->improved, 1);
  EXPECT_EQ(summary.overall.Find("ngd+offset")->role, MethodRole::kOptimization);
  ASSERT_EQ(summary.overall.versus.size(), 1u);
  EXPECT_EQ(summary.overall.versus[0].baseline, "offset");
  EXPECT_EQ(summary.overall.versus[0].paired.improved, 1);
}

TEST_F(RunSummaryTest, PoolsOverItemsAndLeavesOutMethodsThatLackATask) {
  AppendAll();
  const RunSummary summary = Summary();
  EXPECT_EQ(summary.baseline, "none");
  EXPECT_EQ(summary.overall.items, 16);
  EXPECT_THAT(summary.overall.absent, ElementsAre("vote"));
  EXPECT_EQ(summary.overall.Find("vote"), nullptr);
  EXPECT_EQ(summary.overall.Find("ngd")->right, 5 + 4 + 1);
  ASSERT_EQ(summary.groups.size(), 2u);
  EXPECT_EQ(summary.groups[0].name, "adaptation");
  EXPECT_EQ(summary.groups[0].items, 12);
  EXPECT_EQ(summary.groups[0].Find("vote")->right, 4);
}

TEST_F(RunSummaryTest, WhatOptimizesIsComparedWithEachBaselineInPairs) {
  AppendAll();
  const RunSummary summary = Summary();
  // sst2: ngd 10111100 against vote 11110000.
  ASSERT_EQ(summary.tasks[0].versus.size(), 1u);
  const VersusBaseline& versus = summary.tasks[0].versus[0];
  EXPECT_EQ(versus.method, "ngd");
  EXPECT_EQ(versus.baseline, "vote");
  EXPECT_EQ(versus.paired.improved, 2);
  EXPECT_EQ(versus.paired.worsened, 1);
  EXPECT_DOUBLE_EQ(versus.paired.difference.value, 1.0 / 8);
  EXPECT_LT(versus.paired.difference.low, 0);
  EXPECT_DOUBLE_EQ(versus.paired.mcnemar.p_value, 1);
  EXPECT_TRUE(summary.overall.versus.empty());  // The vote lacks a task.
  EXPECT_THAT(RenderText(summary), HasSubstr("ngd against vote  +12.5 ["));
  EXPECT_THAT(RenderMarkdown(summary), HasSubstr("| ngd against vote | +12.5 ["));
  const nlohmann::json json = nlohmann::json::parse(RenderJson(summary));
  EXPECT_EQ(json["tasks"][0]["versus"][0]["improved"], 2);
}

TEST_F(RunSummaryTest, TheReadingSaysWhetherABaselineIsAhead) {
  run_.AppendAnswers("sst2", "none", "00000000");
  run_.AppendAnswers("sst2", "ngd", "11110000");
  run_.AppendAnswers("sst2", "vote", "11111111");
  EXPECT_THAT(ReadingOf(Summary()),
              testing::Contains(HasSubstr(
                  "C3PO (ngd) against vote, in pairs: -50.0 [-78.5, -6.8] points, 0 right that vote has wrong, "
                  "4 the reverse: it is behind.")));
}

TEST_F(RunSummaryTest, AllRightIsNoCertainty) {
  run_.AppendAnswers("sst2", "none", std::string(27, '1'));
  run_.AppendAnswers("sst2", "ngd", std::string(27, '1'));
  const RunSummary summary = Summary();
  const MethodSummary* ngd = summary.tasks[0].Find("ngd");
  EXPECT_EQ(FormatRate(ngd->accuracy), "100.0 [87.5, 100.0]");
  EXPECT_LT(ngd->paired->difference.low, 0);
  EXPECT_GT(ngd->paired->difference.high, 0);
}

TEST_F(RunSummaryTest, ComparesOnlyItemsThatAllMethodsAnswered) {
  run_.AppendAnswers("sst2", "none", "1100");
  run_.AppendAnswers("sst2", "ngd", ".1.1");
  const RunSummary summary = Summary();
  EXPECT_EQ(summary.tasks[0].items, 2);
  EXPECT_EQ(summary.tasks[0].left_out, 2);
  EXPECT_EQ(summary.tasks[0].Find("none")->right, 1);
  EXPECT_EQ(summary.tasks[0].Find("ngd")->right, 2);
  EXPECT_THAT(RenderText(summary), HasSubstr("2 left out"));
}

TEST_F(RunSummaryTest, TheLastOfRepeatedItemsCountsAndACutLastLineIsPassedOver) {
  run_.AppendAnswers("sst2", "none", "00");
  run_.AppendAnswers("sst2", "none", "1.");
  run_.AppendText("{\"task\":\"sst2\",\"id\":\"q7\",\"meth");
  const RunSummary summary = Summary();
  EXPECT_EQ(summary.tasks[0].items, 2);
  EXPECT_EQ(summary.tasks[0].Find("none")->right, 1);
  EXPECT_THAT(summary.notes, testing::Contains(HasSubstr("is cut")));
  EXPECT_THAT(summary.notes, testing::Contains("Method ngd answered no question."));
}

TEST_F(RunSummaryTest, AnEmptyRunHasNothingToCompareAndSaysSo) {
  const RunSummary summary = Summary();
  EXPECT_EQ(summary.overall.items, 0);
  EXPECT_THAT(RenderText(summary), HasSubstr("nothing to compare"));
  EXPECT_THAT(RenderMarkdown(summary), HasSubstr("nothing to compare"));
}

TEST_F(RunSummaryTest, MalformedFoldersAreNamed) {
  run_.AppendText("not json\n{}\n");
  EXPECT_THAT(SummarizeRun(run_.path()).status().message(), HasSubstr("items.jsonl:1: not a JSON object"));
  run_.WriteRunJson(R"({"version": 1, "tasks": [{"name": 3}]})");
  EXPECT_THAT(SummarizeRun(run_.path()).status().message(), HasSubstr("\"tasks[0].name\" has another type"));
  run_.WriteRunJson(R"({"version": 2})");
  EXPECT_THAT(SummarizeRun(run_.path()).status().message(), HasSubstr("only 1 is known"));
  run_.WriteRunJson(R"({"version": 1, "methods": [{"label": "a", "optimization": {"method": 7}}]})");
  EXPECT_EQ(SummarizeRun(run_.path()).status().code(), absl::StatusCode::kInvalidArgument);
  run_.WriteRunJson("[");
  EXPECT_EQ(SummarizeRun(run_.path()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SummarizeRun(run_.path() + "/absent").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(RunSummaryTest, ReadsLossesAsPlainlyAsGains) {
  AppendAll();
  const RunSummary summary = Summary();
  const std::vector<std::string> reading = ReadingOf(summary);
  ASSERT_FALSE(reading.empty());
  EXPECT_THAT(reading[0], HasSubstr("C3PO (ngd) answered 10 of 16 questions right against 6 without: +25.0 points ["));
  EXPECT_THAT(reading[0], HasSubstr("6 improved, 2 worsened"));
  const std::string text = RenderText(summary);
  EXPECT_THAT(text, HasSubstr("behind the model alone on: arc -25.0"));
  EXPECT_THAT(text, HasSubstr("Mark of adaptation: at least +10.0 points"));
}

TEST_F(RunSummaryTest, AMissedMarkNamesItsLimits) {
  run_.AppendAnswers("arc", "none", "1100");
  run_.AppendAnswers("arc", "ngd", "1100");
  run_.AppendAnswers("arc", "bound", "1100");
  run_.AppendAnswers("arc", "vote", "0000");
  const std::vector<MarkReading> marks = ReadMarks(Summary());
  ASSERT_EQ(marks.size(), 1u);
  EXPECT_FALSE(marks[0].met);
  ASSERT_EQ(marks[0].limits.size(), 3u);
  EXPECT_THAT(marks[0].limits[0], HasSubstr("Headroom"));
  EXPECT_THAT(marks[0].limits[1], HasSubstr("Transfer: the neighbors' loss falls by 50 %"));
  EXPECT_THAT(marks[0].limits[2], HasSubstr("Embedding: the neighbors' vote is right for 0.0 %"));
}

TEST_F(RunSummaryTest, AMarkIsMetByLiftAndFewWorsened) {
  run_.AppendAnswers("sst2", "none", "11000000");
  run_.AppendAnswers("sst2", "ngd", "11111100");
  run_.AppendAnswers("sst2", "vote", "11110000");
  const std::vector<MarkReading> marks = ReadMarks(Summary());
  ASSERT_EQ(marks.size(), 1u);
  EXPECT_TRUE(marks[0].met) << marks[0].text;
  EXPECT_THAT(marks[0].limits, IsEmpty());
}

TEST_F(RunSummaryTest, PointsOfAnAblationHaveTheirOwnTable) {
  std::string json = kEvalRunJson;
  json.insert(json.size() - 1, R"(, "ablation": {"name": "neighbors", "variable": "k", "points": [
      {"label": "3", "value": 3, "method_label": "ngd"}, {"value": 12, "method_label": "bound"}]})");
  run_.WriteRunJson(json);
  AppendAll();
  const RunSummary summary = Summary();
  EXPECT_EQ(summary.overall.Find("ngd"), nullptr);
  ASSERT_EQ(summary.ablations.size(), 1u);
  EXPECT_EQ(summary.ablations[0].scopes.size(), 3u);  // all, adaptation, knowledge
  EXPECT_EQ(summary.ablations[0].scopes[0].Find("ngd")->paired->improved, 6);
  EXPECT_EQ(summary.ablations[0].ablation.points[1].label, "12");
}

TEST_F(RunSummaryTest, NoTableSaysTheSameAsAnother) {
  // One group that holds every task, and an ablation of all the run's methods.
  run_.WriteRunJson(
      R"({"version": 1, "tasks": [{"name": "sst2", "group": "adaptation"}, {"name": "mrpc", "group": "adaptation"}],
      "methods": [{"label": "none"}, {"label": "ngd"}],
      "ablation": {"name": "neighbors", "variable": "k", "points": [{"label": "3", "value": 3, "method_label": "ngd"}]}})");
  for (const char* task : {"sst2", "mrpc"}) {
    run_.AppendAnswers(task, "none", "0110");
    run_.AppendAnswers(task, "ngd", "1110");
  }
  const std::string text = RenderText(Summary());
  EXPECT_THAT(text, HasSubstr("all tasks: 8 items compared"));
  EXPECT_THAT(text, Not(HasSubstr("group adaptation")));
  EXPECT_THAT(text, Not(HasSubstr("ablation neighbors")));
  EXPECT_THAT(text, HasSubstr("task mrpc"));
}

TEST_F(RunSummaryTest, MarkdownAndJsonHoldTheSameFigures) {
  AppendAll();
  const RunSummary summary = Summary();
  EXPECT_THAT(RenderMarkdown(summary), HasSubstr("| ngd | 10/16 | 62.5 ["));
  const nlohmann::json json = nlohmann::json::parse(RenderJson(summary));
  EXPECT_EQ(json["overall"]["items"], 16);
  EXPECT_EQ(json["overall"]["methods"][1]["label"], "ngd");
  EXPECT_EQ(json["overall"]["methods"][1]["improved"], 6);
  EXPECT_EQ(json["runs"][0]["model_digest"], "sha256:abc");
  EXPECT_THAT(FormatPoints(-0.00001), Not(HasSubstr("-")));
}

}  // namespace
}  // namespace c3po
