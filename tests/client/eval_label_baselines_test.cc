// Runs made up so that it is known how much of their lift is the labels' offset.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "client/eval/choice_metrics.h"
#include "client/eval/html_report.h"
#include "client/eval/label_baselines.h"
#include "client/eval/offset_reading.h"
#include "client/eval/reference_scores.h"
#include "client/eval/report_reading.h"
#include "client/eval/run_summary.h"
#include "tests/client/eval_run_folder.h"

namespace c3po {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr char kRunJson[] = R"json({"version": 1,
  "tasks": [{"name": "mood", "group": "adaptation", "kind": "choice", "metric": "raw", "collection": "mood"},
            {"name": "facts", "group": "knowledge", "kind": "choice", "metric": "raw", "collection": "facts"}],
  "methods": [{"label": "none", "kind": "score", "optimization": {"method": "METHOD_NONE"}},
              {"label": "ngd", "kind": "score", "optimization": {"method": "METHOD_NEIGHBORHOOD_GRADIENT_DESCENT"}},
              {"label": "knn", "kind": "knn_vote"}]})json";

class LabelBaselinesTest : public testing::Test {
 protected:
  LabelBaselinesTest() { run_.WriteRunJson(kRunJson); }

  void AddQuestion(const std::string& task, const std::string& id, const std::string& prompt,
                   const std::vector<std::string>& choices, int gold) {
    std::ofstream(run_.path() + "/questions.jsonl", std::ios::app)
        << ToJsonLine(QuestionText{task, id, prompt, choices, choices[gold]}) << "\n";
  }
  static ItemResult Answer(const std::string& task, const std::string& id, const std::string& method,
                           const std::vector<std::string>& choices, int gold, const std::vector<double>& scores) {
    Task of;
    of.name = task;
    of.metric = Metric::kRaw;
    TaskItem item;
    item.id = id;
    item.choices = choices;
    item.gold = gold;
    ItemResult result;
    result.task = task;
    result.id = id;
    result.method = method;
    result.log_likelihoods = scores;
    result.token_counts.assign(scores.size(), 1);
    result.seconds = 0.25;
    result.prompt_tokens = 40;
    JudgeChoices(of, item, &result);
    return result;
  }
  // A question of "mood" with the margin of " good" over " bad" by the model alone and by ngd.
  void AddMood(int number, int gold, double none, double ngd) {
    const std::vector<std::string> choices = {" bad", " good"};
    const std::string id = absl::StrCat("q", 1000 + number);
    AddQuestion("mood", id, absl::StrCat("text ", number), choices, gold);
    run_.Append(Answer("mood", id, "none", choices, gold, {-5, none - 5}));
    run_.Append(Answer("mood", id, "ngd", choices, gold, {-5, ngd - 5}));
  }
  void AddReference(int number, const std::string& prompt, int gold, double margin, bool scored = true) {
    ReferenceScore reference;
    reference.prompt = prompt;
    reference.choices = {" bad", " good"};
    reference.answer = Answer("mood", absl::StrCat("r", number), "none", reference.choices, gold, {-5, margin - 5});
    if (!scored) reference.answer.log_likelihoods.clear();
    std::ofstream(run_.path() + "/reference_scores.jsonl", std::ios::app) << ToJsonLine(reference) << "\n";
  }
  // A question whose choices are its own, right by the method or not.
  void AddFact(int number, bool none, bool ngd) {
    const std::vector<std::string> choices = {absl::StrCat(" a", number), absl::StrCat(" b", number)};
    const std::string id = absl::StrCat("f", number);
    AddQuestion("facts", id, absl::StrCat("fact ", number), choices, 0);
    run_.Append(Answer("facts", id, "none", choices, 0, {-1, none ? -2.0 : 0}));
    run_.Append(Answer("facts", id, "ngd", choices, 0, {-1, ngd ? -2.0 : 0}));
  }

  RunSummary Summary() {
    const absl::StatusOr<RunSummary> summary = SummarizeRun(run_.path());
    EXPECT_TRUE(summary.ok()) << summary.status();
    return summary.ok() ? *summary : RunSummary();
  }

  EvalRunFolder run_{"label_baselines"};
};

// The model knows the labels but prefers " bad" by 3; ngd only takes that preference away.
void MakeLiftOfOffsetAlone(const std::function<void(int, int, double, double)>& add_question,
                           const std::function<void(int, int, double)>& add_reference) {
  std::mt19937_64 random(3);
  std::normal_distribution<double> noise(0, 1);
  for (int i = 0; i < 200; ++i) {
    const int gold = i % 2;
    const double margin = noise(random) + (gold == 1 ? 1 : -1);
    add_question(i, gold, margin - 3, margin);
  }
  for (int i = 0; i < 200; ++i) {
    const int gold = i % 2;
    add_reference(i, gold, noise(random) + (gold == 1 ? 1 : -1) - 3);
  }
}

TEST_F(LabelBaselinesTest, ALiftThatIsAllOffsetIsSaidToBe) {
  MakeLiftOfOffsetAlone(
      [&](int i, int gold, double none, double ngd) { AddMood(i, gold, none, ngd); },
      [&](int i, int gold, double margin) { AddReference(i, absl::StrCat("ref ", i), gold, margin); });
  const RunSummary summary = Summary();
  const ScopeSummary& mood = summary.tasks[0];
  const MethodSummary *none = mood.Find("none"), *ngd = mood.Find("ngd"), *offset = mood.Find("label-offset");
  ASSERT_TRUE(offset != nullptr && ngd->beyond.remaining && ngd->beyond.auc_difference);
  EXPECT_GT(ngd->paired->difference.low, 0.1);  // A lift, and no small one.
  EXPECT_GT(offset->paired->difference.value, 0.9 * ngd->paired->difference.value);
  // The offset cancels: what is fitted after either sees the same margins but for a constant.
  EXPECT_LE(ngd->beyond.remaining->improved + ngd->beyond.remaining->worsened, 2);
  EXPECT_EQ(VerdictOf(*ngd->beyond.remaining), BeyondVerdict::kNoneShown);
  EXPECT_EQ(ngd->beyond.auc->value, none->beyond.auc->value);
  EXPECT_EQ(ngd->beyond.auc_difference->p_value, 1);
  EXPECT_GT(*LiftPartsOf(mood, *ngd)->share, 0.9);
  const std::vector<std::string> reading = ReadingOf(summary);
  EXPECT_THAT(reading[0], AllOf(HasSubstr("Of the lift of C3PO (ngd), +"), HasSubstr("of it is the labels' offset")));
  EXPECT_THAT(reading[1], HasSubstr("no lift beyond the labels' offset is shown"));
  EXPECT_THAT(reading[2], HasSubstr(", 0.000 [0.000, 0.000], p 1.0000"));
}

// Margins of the model alone that no offset improves: each stands there with its mirror image. ngd orders better.
TEST_F(LabelBaselinesTest, ALiftWithoutOffsetIsSaidToBeBeyondIt) {
  std::mt19937_64 random(4);
  std::normal_distribution<double> noise(0, 1);
  for (int i = 0; i < 100; ++i) {
    const double margin = noise(random) + 0.3, better = margin + 2;
    AddMood(2 * i, 1, margin, better);
    AddMood(2 * i + 1, 0, -margin, -better);
    AddReference(2 * i, absl::StrCat("ref ", 2 * i), 1, margin);
    AddReference(2 * i + 1, absl::StrCat("ref ", 2 * i + 1), 0, -margin);
  }
  const RunSummary summary = Summary();
  const ScopeSummary& mood = summary.tasks[0];
  const MethodSummary* ngd = mood.Find("ngd");
  EXPECT_EQ(mood.Find("label-offset")->paired->difference.value, 0);
  ASSERT_TRUE(ngd->beyond.remaining);
  EXPECT_NEAR(ngd->beyond.remaining->difference.value, ngd->paired->difference.value, 0.03);
  EXPECT_EQ(VerdictOf(*ngd->beyond.remaining), BeyondVerdict::kLift);
  EXPECT_GT(ngd->beyond.auc_difference->difference.low, 0.2);
  EXPECT_EQ(*LiftPartsOf(mood, *ngd)->share, 0);
  const std::vector<std::string> reading = ReadingOf(summary);
  EXPECT_THAT(reading[0], HasSubstr("none of it is the labels' offset"));
  EXPECT_THAT(reading[1], HasSubstr("that much is beyond the labels' offset"));
  EXPECT_THAT(reading[2], HasSubstr("it orders the questions better"));
}

TEST_F(LabelBaselinesTest, AMethodThatOrdersWorseIsALossWhateverItsLift) {
  for (int i = 0; i < 120; ++i) {
    const int gold = i % 2;
    const double sign = gold == 1 ? 1 : -1;
    AddMood(i, gold, sign * (1 + i % 5) - 20, i % 5 < 2 ? -sign : sign);  // Always " bad"; ngd has three of five right.
  }
  const std::vector<std::string> reading = ReadingOf(Summary());
  EXPECT_THAT(reading[0], AllOf(HasSubstr("Of the lift of C3PO (ngd), +10.0 points, all of it is the labels' offset"),
                                HasSubstr("An offset fitted to the labels of other questions gains +50.0")));
  EXPECT_THAT(reading[1], HasSubstr("beyond the labels' offset, it is a loss"));
  EXPECT_THAT(reading[2], HasSubstr("it orders the questions worse"));
}

TEST_F(LabelBaselinesTest, RowsAreWhatTheirFormulasSay) {
  // Margins -4, -3, -1, -2: mean -2.5, so that the batch's offset says good where a margin is above it.
  AddMood(0, 0, -4, 0);
  AddMood(1, 1, -3, 0);
  AddMood(2, 1, -1, 0);
  AddMood(3, 1, -2, 0);
  AddReference(0, "a", 1, -1);
  AddReference(1, "b", 1, -1.5);
  AddReference(2, "c", 0, -4);
  AddReference(3, "d", 0, -4.5);
  AddReference(4, "e", 0, 0, /*scored=*/false);
  const RunSummary summary = Summary();
  ASSERT_EQ(summary.labels.size(), 1u);
  EXPECT_THAT(summary.labels[0].labels, ElementsAre("bad", "good"));
  EXPECT_THAT(summary.labels[0].references, ElementsAre(3, 2));
  EXPECT_EQ(summary.labels[0].scored, 4);
  EXPECT_NEAR(summary.labels[0].unfitted->offsets[1], 1.25, 1e-12);
  const ScopeSummary& mood = summary.tasks[0];
  EXPECT_EQ(mood.Find("none")->right, 1);
  EXPECT_EQ(mood.Find("majority")->right, 1);      // bad
  EXPECT_EQ(mood.Find("batch-offset")->right, 3);  // bad, bad, good, good
  EXPECT_EQ(mood.Find("label-offset")->right, 3);  // Between -4 and -1.5.
  EXPECT_EQ(mood.Find("label-offset")->role, MethodRole::kLabelOffset);
  // An offset costs what the model alone does, a majority nothing.
  EXPECT_EQ(mood.Find("label-offset")->mean_seconds, 0.25);
  EXPECT_EQ(mood.Find("label-offset")->mean_tokens, 40);
  EXPECT_EQ(mood.Find("majority")->mean_seconds, 0);
  ASSERT_EQ(mood.versus.size(), 1u);
  EXPECT_EQ(mood.versus[0].baseline, "label-offset");
}

TEST_F(LabelBaselinesTest, TheOrderOfChoicesDoesNotMatter) {
  std::string figures;
  for (const bool reversed : {false, true}) {
    std::filesystem::remove(run_.path() + "/items.jsonl");
    std::filesystem::remove(run_.path() + "/questions.jsonl");
    std::filesystem::remove(run_.path() + "/reference_scores.jsonl");
    std::mt19937_64 random(8);
    std::normal_distribution<double> noise(0, 1);
    for (int i = 0; i < 40; ++i) {
      const int gold = i % 4 == 0 ? 0 : 1;
      const double margin = noise(random) + gold - 2;
      // From the second on, so that the labels' own order stays.
      const bool turned = reversed && i > 0 && i % 3 != 0;
      const std::vector<std::string> choices =
          turned ? std::vector<std::string>{"good ", " bad"} : std::vector<std::string>{" bad", "good "};
      const int index = turned ? 1 - gold : gold;
      const std::vector<double> scores =
          turned ? std::vector<double>{margin - 5, -5} : std::vector<double>{-5, margin - 5};
      AddQuestion("mood", absl::StrCat("q", 100 + i), absl::StrCat("text ", i), choices, index);
      run_.Append(Answer("mood", absl::StrCat("q", 100 + i), "none", choices, index, scores));
      ReferenceScore reference;
      reference.prompt = absl::StrCat("ref ", i);
      reference.choices = choices;
      reference.answer = Answer("mood", absl::StrCat("r", i), "none", choices, index, scores);
      std::ofstream(run_.path() + "/reference_scores.jsonl", std::ios::app) << ToJsonLine(reference) << "\n";
    }
    const std::string json = RenderJson(Summary());
    if (reversed) {
      EXPECT_EQ(json, figures);
    }
    figures = json;
  }
  EXPECT_THAT(figures, HasSubstr("\"label-offset\""));
}

TEST_F(LabelBaselinesTest, AReferenceTellsNothingOfItsOwnQuestion) {
  AddMood(0, 1, -1, 0);
  AddMood(1, 0, -2, 0);
  AddReference(0, "text 0\n", 1, -1);  // The first question's text.
  AddReference(1, "another", 0, -3);
  AddReference(2, " text 0", 1, -1);
  const absl::StatusOr<ReportInput> input = ReadRunFolders({run_.path()});
  ASSERT_TRUE(input.ok()) << input.status();
  std::map<std::string, int> predicted;
  for (const ItemResult& item : input->items) predicted[absl::StrCat(item.method, " ", item.id)] = item.predicted;
  EXPECT_EQ(predicted.at("majority q1000"), 0);  // Without its own two references.
  EXPECT_EQ(predicted.at("majority q1001"), 1);
  EXPECT_EQ(predicted.at("label-offset q1000"), 0);
}

TEST_F(LabelBaselinesTest, ATaskWithoutSharedChoicesHasNoOffsetAndCountsAsTheModelAnswersIt) {
  for (int i = 0; i < 40; ++i) {
    const int gold = i % 2;
    AddMood(i, gold, (gold == 1 ? 1 : -1) - 3, gold == 1 ? 1 : -1);
    AddReference(i, absl::StrCat("ref ", i), gold, (gold == 1 ? 1 : -1) - 3);
  }
  for (int i = 0; i < 10; ++i) AddFact(i, i < 4, i < 7);
  const RunSummary summary = Summary();
  const ScopeSummary &mood = summary.tasks[0], &facts = summary.tasks[1];
  EXPECT_EQ(facts.Find("label-offset"), nullptr);
  EXPECT_FALSE(facts.Find("ngd")->beyond.auc || facts.Find("ngd")->beyond.remaining);
  EXPECT_THAT(BeyondOffsetRows(facts), IsEmpty());
  EXPECT_THAT(facts.labelled, IsEmpty());
  EXPECT_EQ(mood.Find("label-offset")->right, 40);
  // Pooled, they count as none has them; what ngd gains there stays beside the offset.
  EXPECT_EQ(summary.overall.Find("label-offset")->right, 44);
  EXPECT_EQ(summary.overall.Find("majority")->right, 24);
  EXPECT_EQ(summary.overall.Find("ngd")->beyond.remaining->difference.value, 3.0 / 50);
  EXPECT_EQ(summary.overall.Find("ngd")->beyond.auc->value, 1);
  // Of 20 + 3 that ngd gains, an offset has the 20.
  EXPECT_NEAR(*LiftPartsOf(summary.overall, *summary.overall.Find("ngd"))->share, 20.0 / 23, 1e-12);
  EXPECT_THAT(summary.notes, Contains(HasSubstr("The questions of facts do not share their choices: they have no "
                                                "labels, so there is no offset to take out.")));
}

TEST_F(LabelBaselinesTest, NoOffsetExplainsALiftWhereThereAreNoLabels) {
  for (int i = 0; i < 40; ++i) {
    const double margin = (i % 2 == 1 ? 1 : -1) - 3;
    AddMood(i, i % 2, margin, margin);
    AddReference(i, absl::StrCat("ref ", i), i % 2, margin);
  }
  for (int i = 0; i < 10; ++i) AddFact(i, i < 2, i < 9);
  const RunSummary summary = Summary();
  const MethodSummary* ngd = summary.overall.Find("ngd");
  EXPECT_DOUBLE_EQ(ngd->paired->difference.value, 7.0 / 50);
  EXPECT_EQ(*LiftPartsOf(summary.overall, *ngd)->share, 0);
  EXPECT_DOUBLE_EQ(ngd->beyond.remaining->difference.value, 7.0 / 50);
  EXPECT_THAT(ReadingOf(summary)[0], HasSubstr("none of it is the labels' offset. An offset fitted to the references' "
                                               "labels gains +40.0 without it."));
}

TEST_F(LabelBaselinesTest, OneLabelAmongTheQuestionsHasNoAuc) {
  for (int i = 0; i < 12; ++i) AddMood(i, 1, i % 3 - 1.5, 1);
  const RunSummary summary = Summary();
  const MethodSummary* ngd = summary.tasks[0].Find("ngd");
  EXPECT_FALSE(ngd->beyond.auc);
  EXPECT_TRUE(ngd->beyond.remaining);
  const nlohmann::json json = nlohmann::json::parse(RenderJson(summary));
  EXPECT_FALSE(json["tasks"][0]["methods"][1].contains("auc"));
}

TEST_F(LabelBaselinesTest, WithoutReferencesOnlyWhatReadsNoneIsThereAndANoteSaysSo) {
  for (int i = 0; i < 12; ++i) AddMood(i, i % 2, i % 5 - 4, 1);
  const RunSummary summary = Summary();
  EXPECT_NE(summary.tasks[0].Find("batch-offset"), nullptr);
  EXPECT_EQ(summary.tasks[0].Find("label-offset"), nullptr);
  EXPECT_EQ(summary.tasks[0].Find("majority"), nullptr);
  EXPECT_THAT(summary.notes, Contains(HasSubstr("No reference's labels were scored for mood: the row label-offset is "
                                                "missing there (--offset-references).")));
}

TEST_F(LabelBaselinesTest, WithoutTheModelAloneThereAreNoRows) {
  std::string json = kRunJson;
  run_.WriteRunJson(absl::StrReplaceAll(json, {{"METHOD_NONE", "METHOD_PRIOR"}, {"\"none\"", "\"tuned\""}}));
  const std::vector<std::string> choices = {" bad", " good"};
  for (int i = 0; i < 6; ++i) {
    AddQuestion("mood", absl::StrCat("q", i), "t", choices, i % 2);
    run_.Append(Answer("mood", absl::StrCat("q", i), "tuned", choices, i % 2, {-1, -2}));
  }
  EXPECT_EQ(Summary().tasks[0].methods.size(), 1u);
}

TEST_F(LabelBaselinesTest, EveryReportHoldsTheFigures) {
  MakeLiftOfOffsetAlone(
      [&](int i, int gold, double none, double ngd) { AddMood(i, gold, none, ngd); },
      [&](int i, int gold, double margin) { AddReference(i, absl::StrCat("ref ", i), gold, margin); });
  const RunSummary summary = Summary();
  const nlohmann::json json = nlohmann::json::parse(RenderJson(summary));
  const nlohmann::json& ngd = json["tasks"][0]["methods"][1];
  EXPECT_EQ(ngd["auc"]["value"], summary.tasks[0].Find("ngd")->beyond.auc->value);
  EXPECT_EQ(ngd["auc_difference"]["p"], 1.0);
  EXPECT_EQ(ngd["remaining"]["difference"]["value"], summary.tasks[0].Find("ngd")->beyond.remaining->difference.value);
  EXPECT_GT(ngd["lift"]["offset_share"].get<double>(), 0.9);
  EXPECT_EQ(ngd["lift"]["offset_from_references"], true);
  EXPECT_EQ(json["labels"][0]["fitted"]["offsets"].size(), 2u);
  std::vector<std::string> labels;
  for (const nlohmann::json& method : json["tasks"][0]["methods"]) labels.push_back(method["label"]);
  EXPECT_THAT(labels, ElementsAre("none", "ngd", "majority", "batch-offset", "label-offset"));
  EXPECT_THAT(RenderText(summary), AllOf(HasSubstr("label-offset"), HasSubstr("beyond the labels' offset"),
                                         HasSubstr("labels and their offsets")));
  EXPECT_THAT(RenderMarkdown(summary),
              AllOf(HasSubstr("| beyond the labels' offset | AUC [95 %] |"), HasSubstr("| label-offset | "),
                    HasSubstr("| mood | bad, good | 100 / 100 | 200 |")));
  const absl::StatusOr<std::string> html = RenderHtmlReport(run_.path());
  ASSERT_TRUE(html.ok()) << html.status();
  EXPECT_THAT(*html, AllOf(HasSubstr("id=\"beyond\""), HasSubstr(">label-offset<"), HasSubstr(">majority<")));
}

TEST_F(LabelBaselinesTest, TheRowsAreAFileForOtherPrograms) {
  for (int i = 0; i < 4; ++i) AddMood(i, i % 2, i - 3, 1);
  AddReference(0, "a", 1, -1);
  AddReference(1, "b", 0, -4);
  ASSERT_TRUE(WriteLabelBaselines(run_.path()).ok());
  std::ifstream file(run_.path() + "/baselines.jsonl");
  int lines = 0;
  for (std::string line; std::getline(file, line); ++lines) {
    const absl::StatusOr<ItemResult> item = ParseItemResult(line);
    ASSERT_TRUE(item.ok()) << item.status();
    EXPECT_TRUE(IsLabelBaseline(item->method));
  }
  EXPECT_EQ(lines, 12);
  // Written again with nothing else in the run, it holds the same.
  ASSERT_TRUE(WriteLabelBaselines(run_.path()).ok());
  EXPECT_EQ(Summary().tasks[0].items, 4);
}

}  // namespace
}  // namespace c3po
