// Labels of tasks, offsets fitted in folds, and the file of references' scores.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/eval/label_baselines.h"
#include "client/eval/label_task.h"
#include "client/eval/reference_scores.h"
#include "tests/client/eval_run_folder.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(RightAfterOffset, EachFoldIsAnsweredByTheOthers) {
  std::mt19937_64 random(21);
  std::normal_distribution<double> noise(0, 1);
  LabelScores scores;
  scores.labels = 3;
  for (int i = 0; i < 80; ++i) {
    scores.gold.push_back(static_cast<int>(random() % 3));
    for (int c = 0; c < 3; ++c)
      scores.scores.push_back(noise(random) + (c == scores.gold.back() ? 1 : 0) - 3 * (c == 1));
  }
  const std::vector<bool> right = RightAfterOffset(scores);
  std::vector<int> rank(80), dealt(3, 0);
  for (int i = 0; i < 80; ++i) rank[i] = dealt[scores.gold[i]]++;
  for (int i = 0; i < 80; ++i) {
    LabelScores others{3, {}, {}};
    for (int j = 0; j < 80; ++j) {
      if (rank[j] % 10 == rank[i] % 10) continue;
      for (const double each : scores.row(j)) others.scores.push_back(each);
      others.gold.push_back(scores.gold[j]);
    }
    EXPECT_EQ(right[i], ChooseLabel(*FitLabelOffset(others), scores.row(i)) == scores.gold[i]) << i;
  }
}

// Left out one at a time, each question would be answered by the other label, which is one ahead without it.
TEST(RightAfterOffset, ScoresThatTellNothingAreRightByChanceNotNever) {
  LabelScores scores;
  scores.labels = 2;
  for (int i = 0; i < 100; ++i) {
    scores.gold.push_back(i % 2);
    scores.scores.insert(scores.scores.end(), {-1, -1});
  }
  const std::vector<bool> right = RightAfterOffset(scores);
  EXPECT_EQ(std::count(right.begin(), right.end(), true), 50);
}

TEST(LabelTask, LabelsAreChoicesThatEveryQuestionHas) {
  using Choices = std::vector<std::vector<std::string>>;
  EXPECT_THAT(SharedLabels(Choices{{" no", " yes"}, {"yes", " no "}}), ElementsAre("no", "yes"));
  EXPECT_THAT(SharedLabels(Choices{{" no", " yes"}, {" no", " yes", " maybe"}}), IsEmpty());
  EXPECT_THAT(SharedLabels(Choices{{" no", " yes"}, {" no", " maybe"}}), IsEmpty());
  EXPECT_THAT(SharedLabels(Choices{{" no", " no"}, {" no", " no"}}), IsEmpty());
  EXPECT_THAT(SharedLabels(Choices{{" no", " yes"}}), IsEmpty());  // One question's choices may be its own.
  EXPECT_THAT(SharedLabels(Choices{{}, {}}), IsEmpty());
  EXPECT_THAT(SharedLabels(Choices{}), IsEmpty());
}

ReferenceScore Reference(const std::string& id, const std::string& prompt, int gold) {
  ReferenceScore reference;
  reference.prompt = prompt;
  reference.choices = {" bad", " good"};
  reference.answer.task = "mood";
  reference.answer.id = id;
  reference.answer.method = "none";
  reference.answer.gold = gold;
  return reference;
}

TEST(ReferenceScores, AreKeptForReferencesThatDidNotChange) {
  const EvalRunFolder run("reference_scores");
  ItemResult answer = Reference("r", "", 0).answer;
  answer.log_likelihoods = {-1, -2};
  answer.token_counts = {1, 1};
  answer.byte_counts = {3, 4};
  {
    const auto file = ReferenceScoreFile::Open(run.path(), {Reference("r1", "one", 0), Reference("r2", "two", 0),
                                                            Reference("r3", "three", 1), Reference("r4", "four", 1)});
    ASSERT_TRUE(file.ok()) << file.status();
    for (size_t i = 0; i < 3; ++i) {
      answer.id = (*file)->references()[i].answer.id;
      answer.gold = (*file)->references()[i].answer.gold;
      ASSERT_TRUE((*file)->SetAnswer(i, answer).ok());
    }
  }
  std::ofstream(run.path() + "/reference_scores.jsonl", std::ios::app) << R"({"prompt": "cut by a k)";
  // The second has another label now, the third another text.
  const auto file = ReferenceScoreFile::Open(run.path(), {Reference("r2", "two", 1), Reference("r3", "three!", 1),
                                                          Reference("r4", "four", 1), Reference("r1", "one", 0)});
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<bool> scored;
  for (const ReferenceScore& reference : ReadReferenceScores(run.path())) scored.push_back(reference.scored());
  EXPECT_THAT(scored, ElementsAre(false, false, false, true));
  EXPECT_THAT((*file)->references()[3].answer.log_likelihoods, ElementsAre(-1, -2));
}

TEST(ReferenceScores, LinesThatDoNotFitTogetherArePassedOver) {
  ReferenceScore good = Reference("r1", "one", 1), bad = Reference("r2", "two", 2),
                 uneven = Reference("r3", "three", 0);
  uneven.answer.log_likelihoods = {-1};
  const std::string text = absl::StrCat(ToJsonLine(good), "\n{}\nnonsense\n", ToJsonLine(bad), "\n", ToJsonLine(uneven),
                                        "\n[1]\n{\"prompt\": 3, \"choices\": [], \"answer\": {}}\n");
  const std::vector<ReferenceScore> references = ParseReferenceScores(text);
  ASSERT_EQ(references.size(), 1u);
  EXPECT_EQ(references[0].answer.id, "r1");
}

}  // namespace
}  // namespace c3po
