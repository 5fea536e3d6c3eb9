// A calibration that is ended, and goes on: over a formula in place of a server.

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/eval/answer_journal.h"
#include "client/eval/calibration.h"
#include "client/eval/option_setting.h"
#include "client/eval/time_left.h"
#include "tests/client/formula_scorer.h"

namespace c3po {
namespace {

// A signal while the third point is asked: its calls end with CANCELLED, until the search has heard it.
TEST(Calibrate, EndedItChecksTheBestPointSoFar) {
  bool cancelled = false;
  int heard = 0;
  FormulaScorer scorer([&](const Options& options) -> absl::StatusOr<double> {
    if (options.k() == 12 && heard == 0) cancelled = true;
    if (cancelled) return absl::CancelledError("by a signal");
    return Hill(options);
  });
  CalibrationSettings settings = Settings();
  settings.ended = [&] { return cancelled; };
  settings.on_ended = [&] {
    ++heard;
    cancelled = false;
  };
  const auto result = Calibrate(settings, scorer);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->ended);
  EXPECT_EQ(heard, 1);
  EXPECT_EQ(result->chosen.k(), 6);
  EXPECT_EQ(result->chosen.steps(), 5);  // No later axis was begun.
  EXPECT_EQ(result->tried.size(), 3);    // None, the start, k = 6.
  EXPECT_EQ(result->questions, 20);      // The check ran all the same.
  EXPECT_GT(result->lift.value, 0);
  // Before anything was tried there is nothing to keep.
  cancelled = true;
  heard = 0;
  FormulaScorer first([&](const Options& options) -> absl::StatusOr<double> {
    if (options.method() != v1::METHOD_NONE) return absl::CancelledError("by a signal");
    return 0.4;
  });
  EXPECT_EQ(Calibrate(settings, first).status().code(), absl::StatusCode::kCancelled);
  // A second one, during the check, ends it.
  FormulaScorer second([&](const Options& options) -> absl::StatusOr<double> {
    if (options.k() == 12 || heard == 2) return absl::CancelledError("by a signal");
    return Hill(options);
  });
  heard = 0;
  settings.ended = [&] { return true; };
  settings.on_ended = [&] { heard = 2; };
  EXPECT_EQ(Calibrate(settings, second).status().code(), absl::StatusCode::kCancelled);
}

class JournalTest : public testing::Test {
 protected:
  JournalTest() {
    task_.collection = "science";
    for (int i = 0; i < 40; ++i) {
      TaskItem& item = task_.items.emplace_back();
      item.id = absl::StrCat("q", i);
      item.prompt = absl::StrCat("question ", i);
    }
  }
  ~JournalTest() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<AnswerJournal> Open(const std::string& identity = "{\"model\":\"a\"}") {
    auto journal = AnswerJournal::Open(path_, identity);
    EXPECT_TRUE(journal.ok()) << journal.status();
    return journal.ok() ? *std::move(journal) : nullptr;
  }
  // As TaskScorer does.
  void Keep(FormulaScorer& scorer, AnswerJournal* journal) {
    scorer.adorn = [this, journal](const Options& options, size_t question, ItemResult* result) {
      result->task = task_.collection;
      result->method = "calibrated";
      result->id = task_.items[question].id;
      ASSERT_TRUE(journal->Append(options, task_.items[question], *result).ok());
    };
  }

  const std::string folder_ = absl::StrCat(testing::TempDir(), "c3po_journal_", getpid());
  const std::string path_ = folder_ + "/below/state.jsonl";
  Task task_;
};

TEST_F(JournalTest, ACalibrationThatWasEndedGoesOnAndFindsTheSame) {
  FormulaScorer whole(Hill);
  const auto expected = Calibrate(Settings(), whole);
  ASSERT_TRUE(expected.ok());
  {
    const auto journal = Open();
    FormulaScorer scorer([](const Options& options) -> absl::StatusOr<double> {
      if (options.steps() == 20) return absl::UnavailableError("the server went away");
      return Hill(options);
    });
    Keep(scorer, journal.get());
    RememberingScorer remembering(&task_, &scorer, journal.get());
    EXPECT_EQ(Calibrate(Settings(), remembering).status().code(), absl::StatusCode::kUnavailable);
  }
  // A kill in the middle of a line.
  std::ofstream(path_, std::ios::app) << "{\"options\":\"{}\",\"quest";
  const auto journal = Open();
  EXPECT_GT(journal->resumed(), 100);
  FormulaScorer rest(Hill);
  Keep(rest, journal.get());
  RememberingScorer remembering(&task_, &rest, journal.get());
  const auto result = Calibrate(Settings(), remembering);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(OptionsJson(result->chosen), OptionsJson(expected->chosen));
  EXPECT_EQ(result->lift.value, expected->lift.value);
  EXPECT_EQ(result->tried.size(), expected->tried.size());
  EXPECT_EQ(result->tried[2].seconds, expected->tried[2].seconds);
  // Nothing was asked twice: what was left is the last point and the check.
  EXPECT_EQ(journal->resumed() + rest.asked.size(), whole.asked.size());
  journal->Remove();
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(JournalTest, OfAnotherModelOrDamagedItBeginsAnew) {
  ItemResult answer;
  answer.task = task_.collection;
  answer.method = "calibrated";
  answer.id = "q0";
  answer.correct = true;
  Options options;
  options.set_k(3);
  ASSERT_TRUE(Open()->Append(options, task_.items[0], answer).ok());
  EXPECT_EQ(Open()->resumed(), 1);
  EXPECT_TRUE(Open()->Find(options, task_.items[0])->correct);
  EXPECT_FALSE(Open()->Find(options, task_.items[1]));
  TaskItem edited = task_.items[0];
  edited.prompt += " edited";
  EXPECT_FALSE(Open()->Find(options, edited));
  options.set_k(4);
  EXPECT_FALSE(Open()->Find(options, task_.items[0]));
  EXPECT_EQ(Open("{\"model\":\"b\"}")->resumed(), 0);
  EXPECT_EQ(Open()->resumed(), 0);  // The other model's took its place.
  std::ofstream(path_, std::ios::app) << "nonsense\n";
  EXPECT_EQ(Open()->resumed(), 0);
  std::ofstream(path_) << "{\"mod";  // Killed while it was begun.
  EXPECT_EQ(Open()->resumed(), 0);
  EXPECT_EQ(AnswerJournal::Open("/proc/none/state.jsonl", "{}").status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(JournalTest, OneCalibrationHasTheFileAtATime) {
  {
    const auto journal = Open();
    ASSERT_NE(journal, nullptr);
    const auto second = AnswerJournal::Open(path_, "{\"model\":\"a\"}");
    EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
    EXPECT_NE(std::string(second.status().message()).find("another calibration"), std::string::npos);
    // Nor one of another model, which would begin it anew.
    EXPECT_FALSE(AnswerJournal::Open(path_, "{\"model\":\"b\"}").ok());
  }
  EXPECT_NE(Open(), nullptr);
}

TEST_F(JournalTest, AFileOfAnotherKindIsLeftAsItIs) {
  Open();  // Makes the folder.
  const std::string identity = "{\"kept_by\":\"c3po calibrate\",\"model\":\"a\"}";
  for (const std::string text : {"{\"prompt\": \"p\", \"answer\": \"a\"}\n", "a text without a line break", "\n"}) {
    std::ofstream(path_, std::ios::trunc) << text;
    const auto opened = AnswerJournal::Open(path_, identity);
    EXPECT_EQ(opened.status().code(), absl::StatusCode::kFailedPrecondition);
    std::ifstream file(path_);
    EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), text);
  }
}

TEST(TimeLeft, IsThePointsThatMayComeWithinTheBudgetAndTheCheck) {
  const absl::Time start = absl::UnixEpoch();
  const auto at = [&](int seconds) { return start + absl::Seconds(seconds); };
  TimeLeft left(12, 0.5, absl::InfiniteDuration(), start);
  EXPECT_FALSE(left.At(at(5)));
  left.OnPoint(at(0), /*asked=*/false);  // Out of a journal.
  EXPECT_FALSE(left.At(at(5)));
  left.OnPoint(at(10), true);
  EXPECT_EQ(left.At(at(10)), absl::Seconds(10 * 10 + 5));
  left.OnPoint(at(30), true);  // 15 seconds each.
  EXPECT_EQ(left.At(at(30)), absl::Seconds(9 * 15 + 7.5));
  EXPECT_EQ(left.At(at(36)), absl::Seconds(9 * 15 - 6 + 7.5));
  EXPECT_EQ(left.At(at(90)), absl::Seconds(8 * 15 + 7.5));  // A slow point is not counted below nothing.
  TimeLeft brief(12, 1, absl::Seconds(25), start);
  brief.OnPoint(at(10), true);
  EXPECT_EQ(brief.At(at(10)), absl::Seconds(15 + 10));
  EXPECT_EQ(brief.At(at(40)), absl::Seconds(10));
}

}  // namespace
}  // namespace c3po
