// Tiny files of each benchmark's published format, written by hand.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/eval/task_file.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class TaskFileTest : public testing::Test {
 protected:
  TaskFileTest() : folder_(absl::StrCat(testing::TempDir(), "c3po_task_file_", getpid())) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~TaskFileTest() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = absl::StrCat(folder_, "/", name);
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  Task Read(const std::string& path, const TaskFileOptions& options = {}) {
    absl::StatusOr<Task> task = ReadTaskFile(path, options);
    EXPECT_TRUE(task.ok()) << task.status();
    return task.ok() ? *task : Task();
  }

  // The message of the error, which must begin with the file and the line.
  void ExpectMalformed(const std::string& name, const std::string& text, int line, const std::string& what) {
    const std::string path = Write(name, text);
    const absl::StatusOr<Task> task = ReadTaskFile(path);
    ASSERT_FALSE(task.ok()) << text;
    EXPECT_EQ(task.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(task.status().message()), StartsWith(absl::StrCat(path, ":", line, ": ")));
    EXPECT_THAT(std::string(task.status().message()), HasSubstr(what));
  }

  const std::string folder_;
};

TEST_F(TaskFileTest, MmluRowsBecomeLetteredQuestions) {
  const Task task = Read(Write("high_school_physics_test.csv",
                               "\"A ball falls, how \"\"fast\"\"?\",1 m/s,2 m/s,\"3,5 m/s\",4 m/s,C\r\n"
                               "\"Two\nlines?\",a,b,c,d,A\n"));
  ASSERT_EQ(task.items.size(), 2);
  EXPECT_EQ(task.metric, Metric::kRaw);
  EXPECT_EQ(task.items[0].prompt,
            "The following is a multiple choice question (with answer) about high school physics.\n\n"
            "A ball falls, how \"fast\"?\nA. 1 m/s\nB. 2 m/s\nC. 3,5 m/s\nD. 4 m/s\nAnswer:");
  EXPECT_THAT(task.items[0].choices, ElementsAre(" A", " B", " C", " D"));
  EXPECT_EQ(task.items[0].gold, 2);
  EXPECT_EQ(task.items[0].id, "high_school_physics/0");
  EXPECT_THAT(task.items[1].prompt, HasSubstr("Two\nlines?"));
}

TEST_F(TaskFileTest, MmluFolderIsOneTaskAndHeadersArePassedOver) {
  Write("mmlu/anatomy_test.csv", "question,A,B,C,D,answer\nq1,a,b,c,d,B\n");
  Write("mmlu/virology_test.csv", "q2,a,b,c,d,D\n");
  const Task task = Read(folder_ + "/mmlu");
  ASSERT_EQ(task.items.size(), 2);
  EXPECT_EQ(task.name, "mmlu");
  EXPECT_EQ(task.items[0].id, "anatomy/0");
  EXPECT_EQ(task.items[1].gold, 3);
}

TEST_F(TaskFileTest, MalformedMmluRowsNameTheirFirstLine) {
  ExpectMalformed("x_test.csv", "q,a,b,c,d,A\n\"two\nlines\",a,b,c,A\n", 2, "5 columns");
  ExpectMalformed("x_test.csv", "\"two\nlines\",a,b,c,d,A\nq,a,b,c,d,E\n", 3, "\"answer\" is \"E\"");
  ExpectMalformed("x_test.csv", "q,a,,c,d,A\n", 1, "\"B\" is empty");
  ExpectMalformed("x_test.csv", "q,a,b,c,d,A\n\"open,a,b,c,d,A\n", 2, "does not end");
}

TEST_F(TaskFileTest, HellaSwagTextsAreCleaned) {
  const Task task = Read(
      Write("hellaswag_val.jsonl",
            R"({"ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man is on a roof.", "ctx_b": "he", )"
            R"("endings": ["[step] uses  wrap.", "rips it [title] Done", "c", "d"], "label": 1})"));
  ASSERT_EQ(task.items.size(), 1);
  EXPECT_EQ(task.metric, Metric::kPerByte);
  EXPECT_EQ(task.items[0].prompt, "Roof shingle removal: A man is on a roof. He");
  EXPECT_THAT(task.items[0].choices, ElementsAre(" uses wrap.", " rips it. Done", " c", " d"));
  EXPECT_EQ(task.items[0].gold, 1);
  EXPECT_EQ(task.items[0].id, "24");
}

TEST_F(TaskFileTest, HellaSwagWithoutSecondHalfAndWithLabelAsText) {
  const Task task =
      Read(Write("h.jsonl", R"({"activity_label": "X", "ctx_a": "A.", "ctx_b": "", "endings": ["a", "b"], )"
                            R"("label": "0"})"));
  EXPECT_EQ(task.items.at(0).prompt, "X: A.");
  EXPECT_EQ(task.items.at(0).id, "1");  // its line
}

TEST_F(TaskFileTest, MalformedHellaSwagLines) {
  const std::string good = R"({"activity_label": "X", "ctx_a": "A.", "endings": ["a", "b"], "label": 0})";
  ExpectMalformed("h.jsonl",
                  good + "\n" + R"({"activity_label": "X", "ctx_a": "A.", "endings": ["a", "b"], "label": 2})", 2,
                  "\"label\" is \"2\", must be in [0, 1]");
  ExpectMalformed("h.jsonl", good + "\n\n" + R"({"activity_label": "X", "ctx_a": "A.", "endings": "a", "label": 0})", 3,
                  "\"endings\"");
  ExpectMalformed("h.jsonl", good + "\n{oops", 2, "not JSON");
}

TEST_F(TaskFileTest, ArcAsPublishedAndAsOnTheHub) {
  const Task published =
      Read(Write("ARC-Challenge-Test.jsonl",
                 R"({"id": "M_1", "question": {"stem": "Which gas?", "choices": [{"text": "oxygen", "label": "A"}, )"
                 R"({"text": "helium", "label": "B"}]}, "answerKey": "B"})"));
  EXPECT_EQ(published.items.at(0).prompt, "Question: Which gas?\nAnswer:");
  EXPECT_THAT(published.items.at(0).choices, ElementsAre(" oxygen", " helium"));
  EXPECT_EQ(published.items.at(0).gold, 1);
  EXPECT_EQ(published.metric, Metric::kPerByte);
  const Task hub =
      Read(Write("ARC-Easy-Test.jsonl", R"({"id": "M_2", "question": "Which?", "choices": {"text": ["x", "y", "z"], )"
                                        R"("label": ["1", "2", "3"]}, "answerKey": "3"})"));
  EXPECT_EQ(hub.items.at(0).gold, 2);
  EXPECT_EQ(hub.metric, Metric::kRaw);  // The easy set is reported by raw accuracy.
}

TEST_F(TaskFileTest, MalformedArcLines) {
  ExpectMalformed(
      "arc.jsonl",
      R"({"question": {"stem": "?", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]}, )"
      R"("answerKey": "C"})",
      1, "\"answerKey\" is \"C\"");
  ExpectMalformed("arc.jsonl", R"({"question": {"stem": "?"}, "answerKey": "A"})", 1, "\"question.choices\"");
  ExpectMalformed("arc.jsonl",
                  R"({"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"})"
                  "\n"
                  R"({"choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"})",
                  2, "\"question\" is missing");
}

TEST_F(TaskFileTest, PiqaTakesItsLabelsFromAFile) {
  const std::string questions =
      Write("valid.jsonl", R"({"id": "p1", "goal": "Open a jar.", "sol1": "Twist.", "sol2": "Throw."})"
                           "\n"
                           R"({"goal": "Dry socks.", "sol1": "Freeze.", "sol2": "Hang."})");
  TaskFileOptions options;
  options.labels_file = Write("valid-labels.lst", "0\n1\n");
  const Task task = Read(questions, options);
  EXPECT_EQ(task.items.at(0).prompt, "Question: Open a jar.\nAnswer:");
  EXPECT_THAT(task.items.at(1).choices, ElementsAre(" Freeze.", " Hang."));
  EXPECT_EQ(task.items.at(0).gold, 0);
  EXPECT_EQ(task.items.at(1).gold, 1);
  EXPECT_EQ(task.items.at(1).answer, " Hang.");

  options.labels_file = Write("short.lst", "0\n");
  EXPECT_THAT(std::string(ReadTaskFile(questions, options).status().message()), HasSubstr("1 labels for 2 questions"));
  EXPECT_THAT(std::string(ReadTaskFile(questions).status().message()), HasSubstr(":1: \"label\" is missing"));
}

TEST_F(TaskFileTest, WinoGrandeChoicesHoldTheRestOfTheSentence) {
  const Task task =
      Read(Write("dev.jsonl", R"({"qID": "w1", "sentence": "The cup broke as the _ was hard.", "option1": "cup", )"
                              R"("option2": "floor", "answer": "2"})"));
  EXPECT_EQ(task.items.at(0).prompt, "The cup broke as the");
  EXPECT_THAT(task.items.at(0).choices, ElementsAre(" cup was hard.", " floor was hard."));
  EXPECT_EQ(task.items.at(0).gold, 1);
  EXPECT_EQ(task.metric, Metric::kRaw);
  ExpectMalformed("w.jsonl", R"({"sentence": "No blank.", "option1": "a", "option2": "b", "answer": "1"})", 1,
                  "no blank");
  ExpectMalformed("w.jsonl", R"({"sentence": "A _ b", "option1": "a", "option2": "b", "answer": ""})", 1, "\"answer\"");
}

TEST_F(TaskFileTest, MmluOfTheHubIsTheQuestionOfItsCsv) {
  const Task hub =
      Read(Write("mmlu.jsonl", R"({"question": "Which one?", "subject": "high_school_botany", )"
                               R"("choices": ["an ash", "a cod", "dew", "ivy"], "answer": 3})"
                               "\n"
                               R"({"question": "And now?", "subject": "zoology", "choices": ["cow", "oak"], )"
                               R"("answer": "A"})"));
  const Task csv = Read(Write("high_school_botany_test.csv", "Which one?,an ash,a cod,dew,ivy,D\n"));
  EXPECT_EQ(hub.kind, TaskKind::kChoice);
  EXPECT_EQ(hub.metric, Metric::kRaw);
  EXPECT_EQ(hub.items.at(0).prompt, csv.items.at(0).prompt);
  EXPECT_EQ(hub.items.at(0).choices, csv.items.at(0).choices);
  EXPECT_EQ(hub.items.at(0).gold, 3);
  EXPECT_EQ(hub.items.at(0).answer, " D");
  EXPECT_EQ(hub.items.at(1).gold, 0);
  EXPECT_THAT(hub.items.at(1).choices, ElementsAre(" A", " B"));
  ExpectMalformed("m.jsonl", R"({"question": "?", "subject": "s", "choices": ["a", "b"], "answer": 2})", 1,
                  "\"answer\" is \"2\", must be in [0, 1]");
  ExpectMalformed("m.jsonl", R"({"question": "?", "subject": "s", "choices": ["a", "b"], "answer": -1})", 1,
                  "\"answer\"");
}

TEST_F(TaskFileTest, Gsm8kIsGenerationOfANumber) {
  const Task task =
      Read(Write("gsm8k_test.jsonl", R"({"question": "2 and 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"})"));
  EXPECT_EQ(task.kind, TaskKind::kGeneration);
  EXPECT_EQ(task.metric, Metric::kExactMatch);
  EXPECT_EQ(task.items.at(0).answer, "1,005");
  EXPECT_TRUE(task.items.at(0).choices.empty());
  EXPECT_FALSE(task.extraction.empty());
  ExpectMalformed("g.jsonl", R"({"question": "?", "answer": "five"})", 1, "####");
}

TEST_F(TaskFileTest, SamplesWithAndWithoutChoices) {
  const Task task = Read(Write(
      "sst2/heldout.jsonl", R"({"id": "a", "prompt": "p", "answer": " x", "choices": [" y", " x"]})"
                            "\n"
                            R"({"prompt": "q", "answer": " y", "choices": [" y", " x"], "metadata": {"native_id": 7}})"
                            "\n"
                            R"({"id": "a", "prompt": "r", "answer": " y", "choices": [" y", " x"]})"));
  EXPECT_EQ(task.name, "sst2");
  EXPECT_EQ(task.collection, "sst2");
  EXPECT_EQ(task.items.at(0).gold, 1);
  EXPECT_EQ(task.items.at(1).id, "7");
  EXPECT_EQ(task.items.at(2).id, "a#2");
  const Task open = Read(Write("open.jsonl", R"({"prompt": "p", "answer": " x"})"));
  EXPECT_EQ(open.kind, TaskKind::kGeneration);
  EXPECT_EQ(open.metric, Metric::kExactMatch);
  ExpectMalformed("s.jsonl", R"({"prompt": "p", "answer": " z", "choices": [" y", " x"]})", 1, "none of the choices");
  ExpectMalformed("s.jsonl",
                  "{\"prompt\": \"p\", \"answer\": \"x\"}\n{\"prompt\": \"p\", \"answer\": \"x\", \"choices\": "
                  "[\"x\", \"y\"]}",
                  2, "\"choices\"");
}

TEST_F(TaskFileTest, UnknownFormatsListTheKeys) {
  ExpectMalformed("u.jsonl", R"({"text": "x"})", 1, "its keys are text");
  EXPECT_EQ(ReadTaskFile(folder_ + "/none.jsonl").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(ReadTaskFile(Write("empty.jsonl", "\n")).status().message()),
              HasSubstr("holds no questions"));
}

TEST_F(TaskFileTest, MetricThatDoesNotFitIsRefused) {
  TaskFileOptions options;
  options.metric = Metric::kExactMatch;
  const std::string path = Write("c.jsonl", R"({"prompt": "p", "answer": "x", "choices": ["x", "y"]})");
  EXPECT_THAT(std::string(ReadTaskFile(path, options).status().message()), HasSubstr("does not go with"));
  options.metric = Metric::kPerByte;
  EXPECT_EQ(Read(path, options).metric, Metric::kPerByte);
}

TEST_F(TaskFileTest, SuiteGivesTasksByNameAndGroup) {
  const std::string line = R"({"prompt": "p", "answer": "x", "choices": ["x", "y"]})";
  Write("suite/a/heldout.jsonl", line);
  Write("suite/b/heldout.jsonl", line);
  Write("suite/suite.json", R"({"tasks": [{"name": "a", "group": "g1", "metric": "raw", "collection": "refs-a", )"
                            R"("heldout_file": "a/heldout.jsonl", "references_file": "a/references.jsonl"}, )"
                            R"({"name": "b", "group": "g2", "metric": "length_normalized"}]})");
  const auto all = ReadSuite(folder_ + "/suite", {}, {});
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->size(), 2);
  EXPECT_EQ((*all)[0].metric, Metric::kRaw);
  EXPECT_EQ((*all)[0].collection, "refs-a");
  EXPECT_EQ((*all)[1].metric, Metric::kPerByte);
  EXPECT_THAT((*all)[1].references_file, testing::EndsWith("suite/b/references.jsonl"));
  const auto group = ReadSuite(folder_ + "/suite", {}, {"g2"});
  ASSERT_TRUE(group.ok());
  EXPECT_EQ(group->at(0).name, "b");
  EXPECT_THAT(std::string(ReadSuite(folder_ + "/suite", {"c"}, {}).status().message()), HasSubstr("there are a, b"));
}

TEST(SampleItems, SmallerLimitIsTheBeginningOfALarger) {
  std::vector<TaskItem> items(20);
  for (size_t i = 0; i < items.size(); ++i) items[i].id = absl::StrCat(i);
  std::vector<TaskItem> first = items, some = items, more = items;
  SampleItems(3, std::nullopt, &first);
  EXPECT_EQ(first[2].id, "2");
  SampleItems(5, 7, &some);
  SampleItems(9, 7, &more);
  ASSERT_EQ(some.size(), 5);
  bool shuffled = false;
  for (size_t i = 0; i < some.size(); ++i) {
    EXPECT_EQ(some[i].id, more[i].id);
    shuffled = shuffled || some[i].id != absl::StrCat(i);
  }
  EXPECT_TRUE(shuffled);
}

}  // namespace
}  // namespace c3po
