// A run's folder and the evaluator over it; the client's item runner against a fake server.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/eval/evaluator.h"
#include "client/eval/report_input.h"
#include "tests/client/eval_run_folder.h"
#include "tests/client/fake_server.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

RunDescription RunOf(int questions) {
  RunDescription run;
  run.created_unix_seconds = 1780000000;
  run.server.mutable_model()->set_digest("sha256:abc");
  Task& task = run.tasks.emplace_back();
  task.name = "t";
  task.collection = "science";
  for (int i = 0; i < questions; ++i) {
    TaskItem& item = task.items.emplace_back();
    item.id = absl::StrCat("q", i);
    item.prompt = absl::StrCat("question ", i, "\nAnswer:");
    item.choices = {" no", " yes"};
    item.gold = i % 2;
    item.answer = item.choices[item.gold];
  }
  for (const char* label : {"none", "ngd"}) run.methods.emplace_back().label = label;
  run.methods[0].optimization.set_method(v1::METHOD_NONE);
  run.methods[1].optimization.set_k(3);
  return run;
}

// Every answer is right; methods named in `broken` fail.
class FakeRunner : public ItemRunner {
 public:
  absl::StatusOr<ItemResult> Run(const Task& task, const TaskItem& item, const EvalMethod& method,
                                 SharedByMethods*) override {
    absl::MutexLock lock(&mu);
    asked.push_back(absl::StrCat(item.id, "/", method.label));
    if (cancel_after > 0 && static_cast<int>(asked.size()) == cancel_after) cancellation.Cancel();
    if (throws) throw std::bad_alloc();
    if (method.label == broken) return absl::InternalError("broken");
    if (method.label == forbidden) return absl::PermissionDeniedError("not allowed");
    ItemResult result;
    result.task = task.name;
    result.id = item.id;
    result.method = method.label;
    result.correct = true;
    if (method.label == not_a_number) result.log_likelihoods = {-1, std::nan("")};
    return result;
  }
  absl::Mutex mu;
  std::vector<std::string> asked;
  bool throws = false;
  std::string broken, forbidden, not_a_number;
  int cancel_after = 0;
  Cancellation cancellation;
};

class Counter : public EvaluationListener {
 public:
  void OnResult(const ItemResult&) override { ++results; }
  void OnError(const std::string& task, const std::string& id, const std::string& method,
               const absl::Status& error) override {
    errors.push_back(absl::StrCat(task, " ", id, " ", method, " ", error.message()));
  }
  int results = 0;
  std::vector<std::string> errors;
};

class EvalRunTest : public testing::Test {
 protected:
  EvalRunTest() { std::filesystem::remove_all(folder_.path()); }

  std::unique_ptr<RunFolder> Open(const RunDescription& run) {
    absl::StatusOr<std::unique_ptr<RunFolder>> folder = RunFolder::Open(folder_.path(), run);
    EXPECT_TRUE(folder.ok()) << folder.status();
    return folder.ok() ? *std::move(folder) : nullptr;
  }
  std::string Text(const char* name) {
    std::ifstream file(folder_.path() + "/" + name);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  EvaluationOutcome Evaluate1(const RunDescription& run, RunFolder& folder) {
    EvaluationOptions options;
    options.concurrency = 1;
    options.cancellation = &runner_.cancellation;
    return Evaluate(run, runner_, folder, counter_, options);
  }

  EvalRunFolder folder_{"evaluator"};
  FakeRunner runner_;
  Counter counter_;
};

TEST_F(EvalRunTest, AllMethodsOfAQuestionBeforeTheNext) {
  const RunDescription run = RunOf(2);
  const auto folder = Open(run);
  const EvaluationOutcome outcome = Evaluate1(run, *folder);
  EXPECT_EQ(outcome.answered, 4);
  EXPECT_EQ(outcome.failed, 0);
  EXPECT_THAT(runner_.asked, ElementsAre("q0/none", "q0/ngd", "q1/none", "q1/ngd"));
  EXPECT_EQ(MissingAnswers(run, *folder), 0);
  EXPECT_EQ(counter_.results, 4);
}

TEST_F(EvalRunTest, AnExceptionOfAThreadEndsTheRunWithAStatus) {
  const RunDescription run = RunOf(2);
  const auto folder = Open(run);
  runner_.throws = true;
  EXPECT_EQ(Evaluate1(run, *folder).status, absl::ResourceExhaustedError("out of memory"));
  runner_.throws = false;
  EXPECT_EQ(Evaluate1(run, *folder).answered, 4);
}

TEST_F(EvalRunTest, TheFolderIsReadableAsAReport) {
  RunDescription run = RunOf(2);
  run.ablation = AblationAxis{"k of ngd", "k", {{"3", "3", "ngd"}}};
  run.seed = 5;
  run.command_line = "c3po eval";
  const auto folder = Open(run);
  Evaluate1(run, *folder);
  const std::vector<std::string> folders = {folder_.path()};
  const auto input = ReadRunFolders(folders);
  ASSERT_TRUE(input.ok()) << input.status();
  EXPECT_EQ(input->items.size(), 4);
  EXPECT_EQ(input->tasks.at(0).items, 2);
  EXPECT_EQ(input->methods.at(0).role, MethodRole::kBaseline);
  EXPECT_EQ(input->ablations.at(0).points.at(0).value, 3.0);
  EXPECT_EQ(input->runs.at(0).model_digest, "sha256:abc");
  const auto json = nlohmann::json::parse(Text("run.json"));
  EXPECT_EQ(json.at("version"), 1);
  EXPECT_EQ(json.at("methods")[1].at("optimization").at("k"), 3);
}

TEST_F(EvalRunTest, KeepsWhatIdsStandFor) {
  {
    const RunDescription run = RunOf(1);
    const auto folder = Open(run);
    ItemResult result;
    result.task = "t";
    result.id = "q0";
    result.method = "ngd";
    result.neighbor_texts = {{"ref-0", "near?\nAnswer:", " yes"}, {"ref-1", "far?", " no"}};
    ASSERT_TRUE(folder->Append(result).ok());
    EXPECT_EQ(Text("items.jsonl").find("near?"), std::string::npos);
  }
  std::ofstream(folder_.path() + "/references.jsonl", std::ios::app) << "{\"id\": \"ref-2\", \"prom";  // A kill.
  const RunDescription more = RunOf(2);
  const auto folder = Open(more);
  ItemResult result;
  result.task = "t";
  result.id = "q1";
  result.method = "ngd";
  result.neighbor_texts = {{"ref-1", "far?", " no"}, {"ref-2", "next?", " no"}};
  ASSERT_TRUE(folder->Append(result).ok());
  const std::vector<std::string> folders = {folder_.path()};
  const auto input = ReadRunFolders(folders);
  ASSERT_TRUE(input.ok()) << input.status();
  ASSERT_NE(input->FindQuestion("t", "q1"), nullptr);
  EXPECT_EQ(input->FindQuestion("t", "q0")->prompt, "question 0\nAnswer:");
  EXPECT_THAT(input->FindQuestion("t", "q1")->choices, ElementsAre(" no", " yes"));
  EXPECT_EQ(input->references.size(), 3);
  EXPECT_EQ(input->FindReference("ref-0")->answer, " yes");
  EXPECT_EQ(input->FindReference("ref-2")->prompt, "next?");
}

TEST_F(EvalRunTest, GoesOnAfterALineThatWasCutShort) {
  const RunDescription run = RunOf(3);
  {
    const auto folder = Open(run);
    Evaluate1(run, *folder);
  }
  // A kill in the middle of the last line.
  const std::string items = Text("items.jsonl");
  std::filesystem::resize_file(folder_.path() + "/items.jsonl", items.size() - 20);
  runner_.asked.clear();
  const auto folder = Open(run);
  EXPECT_EQ(folder->resumed(), 5);
  EXPECT_EQ(MissingAnswers(run, *folder), 1);
  Evaluate1(run, *folder);
  EXPECT_THAT(runner_.asked, ElementsAre("q2/ngd"));
  EXPECT_EQ(Text("items.jsonl"), items);
}

TEST_F(EvalRunTest, MoreQuestionsGoOnOtherSettingsAreRefused) {
  { Evaluate1(RunOf(2), *Open(RunOf(2))); }
  EXPECT_EQ(MissingAnswers(RunOf(4), *Open(RunOf(4))), 4);
  const auto refused = [&](const RunDescription& run, const char* what) {
    const auto folder = RunFolder::Open(folder_.path(), run);
    ASSERT_FALSE(folder.ok());
    EXPECT_EQ(folder.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(folder.status().message()), HasSubstr(what));
  };
  refused(RunOf(1), "different: fewer questions");
  RunDescription other = RunOf(4);
  other.methods[1].optimization.set_k(4);
  refused(other, "different: methods");
  other = RunOf(4);
  other.seed = 1;
  refused(other, "different: seed");
  other = RunOf(4);
  other.server.mutable_model()->set_digest("sha256:other");
  refused(other, "different: model");
  other = RunOf(4);
  other.tasks[0].metric = Metric::kRaw;
  refused(other, "different: tasks");
  other = RunOf(4);
  other.effective["science"].set_k(12);  // A profile was stored since.
  refused(other, "different: settings of the collections");
}

TEST_F(EvalRunTest, AMalformedLineInTheMiddleIsAnError) {
  Open(RunOf(1));
  folder_.AppendText("{\"task\": 1}\n");
  const auto folder = RunFolder::Open(folder_.path(), RunOf(1));
  EXPECT_THAT(std::string(folder.status().message()), HasSubstr("items.jsonl:1: "));
}

TEST_F(EvalRunTest, ErrorsAreToldCountedAndAskedAgain) {
  runner_.broken = "ngd";
  const RunDescription run = RunOf(3);
  const EvaluationOutcome outcome = Evaluate1(run, *Open(run));
  EXPECT_EQ(outcome.answered, 3);
  EXPECT_EQ(outcome.failed, 3);
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_THAT(counter_.errors, ElementsAre("t q0 ngd broken", "t q1 ngd broken", "t q2 ngd broken"));
  runner_.broken.clear();
  EXPECT_EQ(Evaluate1(run, *Open(run)).answered, 3);
}

TEST_F(EvalRunTest, AMethodThatFailsForEveryQuestionIsGivenUpAndTheOthersGoOn) {
  runner_.broken = "ngd";
  const RunDescription run = RunOf(20);
  const EvaluationOutcome outcome = Evaluate1(run, *Open(run));
  EXPECT_EQ(outcome.answered, 20);
  EXPECT_EQ(outcome.failed, 5);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  ASSERT_EQ(outcome.given_up.size(), 1);
  EXPECT_EQ(outcome.given_up[0].code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(outcome.given_up[0].message()),
              HasSubstr("method ngd failed 5 times in a row and was given up: broken"));
}

TEST_F(EvalRunTest, AMethodThatIsForbiddenIsGivenUpAtOnce) {
  runner_.forbidden = "ngd";
  const RunDescription run = RunOf(20);
  const EvaluationOutcome outcome = Evaluate1(run, *Open(run));
  EXPECT_EQ(outcome.answered, 20);
  EXPECT_EQ(outcome.failed, 1);
  ASSERT_EQ(outcome.given_up.size(), 1);
  EXPECT_EQ(outcome.given_up[0].code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(EvalRunTest, TheRunEndsOnceEveryMethodIsGivenUp) {
  runner_.forbidden = "none";
  runner_.broken = "ngd";
  const RunDescription run = RunOf(20);
  const EvaluationOutcome outcome = Evaluate1(run, *Open(run));
  EXPECT_EQ(outcome.answered, 0);
  EXPECT_EQ(outcome.failed, 6);
  EXPECT_EQ(outcome.given_up.size(), 2);
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kInternal);
}

TEST_F(EvalRunTest, WhatIsNotANumberIsAFailedAnswer) {
  runner_.not_a_number = "ngd";
  const RunDescription run = RunOf(2);
  const EvaluationOutcome outcome = Evaluate1(run, *Open(run));
  EXPECT_EQ(outcome.answered, 2);
  EXPECT_EQ(outcome.failed, 2);
  EXPECT_THAT(counter_.errors, ElementsAre(HasSubstr("\"log_likelihoods\" holds nan"), testing::_));
  EXPECT_EQ(Open(run)->resumed(), 2);
}

// As earlier versions wrote it.
TEST_F(EvalRunTest, ALineWithNullForAFigureIsAskedAgain) {
  const RunDescription run = RunOf(2);
  Evaluate1(run, *Open(run));
  std::string text = Text("items.jsonl");
  const size_t at = text.find("\"gold\"");
  ASSERT_NE(at, std::string::npos);
  text.insert(at, "\"log_likelihoods\":[null,-1.5],");
  std::ofstream(folder_.path() + "/items.jsonl") << text;
  const auto folder = Open(run);
  EXPECT_EQ(folder->resumed(), 3);
  EXPECT_EQ(MissingAnswers(run, *folder), 1);
  const std::vector<std::string> folders = {folder_.path()};
  const auto input = ReadRunFolders(folders);
  ASSERT_TRUE(input.ok()) << input.status();
  EXPECT_EQ(input->items.size(), 3);
  EXPECT_THAT(input->notes, testing::Contains(HasSubstr("not a number")));
}

TEST_F(EvalRunTest, CancellationEndsTheRunAndKeepsWhatIsThere) {
  runner_.cancel_after = 3;
  const RunDescription run = RunOf(20);
  const EvaluationOutcome outcome = Evaluate1(run, *Open(run));
  EXPECT_TRUE(outcome.cancelled);
  EXPECT_EQ(outcome.failed, 0);
  EXPECT_EQ(Open(run)->resumed(), 3);
}

class ItemRunnerTest : public testing::Test {
 protected:
  ItemRunnerTest() {
    server_.on_search = [](grpc::ServerContext*, const v1::SearchReferencesRequest& request,
                           v1::SearchReferencesResponse* response) {
      const char* answers[] = {" yes", " no", " no"};
      for (int i = 0; i < 3 && i < static_cast<int>(request.k()); ++i) {
        auto& hit = *response->add_hits();
        hit.set_distance(0.5 + 0.1 * i);
        hit.mutable_reference()->set_id(absl::StrCat("ref-", i));
        hit.mutable_reference()->mutable_sample()->set_prompt(absl::StrCat("n", i, "\nAnswer:"));
        hit.mutable_reference()->mutable_sample()->set_answer(answers[i]);
      }
      return grpc::Status::OK;
    };
  }

  ItemResult Ask(const EvalMethod& method, uint32_t context_window = 0) {
    Client client(InsecureChannel(server_.address()));
    v1::GetServerInfoResponse info;
    info.mutable_model()->set_context_window(context_window);
    info.mutable_default_optimization()->set_k(1);
    info.mutable_default_optimization()->set_reference_selection(v1::REFERENCE_SELECTION_SUCCESSFUL);
    ClientItemRunner runner(&client, CallOptions(), info);
    const auto result = runner.Run(task_, item_, method, &shared_);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : ItemResult();
  }

  FakeServer server_;
  RunDescription run_ = RunOf(1);
  Task& task_ = run_.tasks[0];
  TaskItem& item_ = task_.items[0];
  SharedByMethods shared_;
};

TEST_F(ItemRunnerTest, ChoicesGoThroughScore) {
  task_.metric = Metric::kRaw;
  const ItemResult result = Ask(run_.methods[1]);
  // The fake's log-likelihood is -1 less the number of letters "e".
  EXPECT_THAT(result.log_likelihoods, ElementsAre(-1, -2));
  EXPECT_TRUE(result.correct);
  EXPECT_EQ(result.gate, "applied");
  EXPECT_THAT(result.neighbor_ids, ElementsAre("ref-0", "ref-1"));
  EXPECT_THAT(result.losses, ElementsAre(0.8, 0.5, 0.2));
  const v1::ScoreRequest request = server_.score_requests().at(0);
  EXPECT_THAT(request.continuations(), ElementsAre(" no", " yes"));
  EXPECT_EQ(request.optimization().collection(), "science");
  EXPECT_FALSE(request.has_oracle_answer());
}

TEST_F(ItemRunnerTest, AProfileOfMethodNoneIsTheModelAsItIsAndAskedOnce) {
  EvalMethod profile;
  profile.label = "profile";
  for (const auto& [collection, asked] : {std::pair("plain", 1), std::pair("science", 2)}) {
    SCOPED_TRACE(collection);
    task_.collection = collection;
    shared_ = SharedByMethods();
    const size_t before = server_.score_requests().size();
    const ItemResult none = Ask(run_.methods[0]), same = Ask(profile);
    EXPECT_EQ(server_.score_requests().size() - before, asked);
    EXPECT_EQ(same.method, "profile");
    EXPECT_EQ(same.log_likelihoods, none.log_likelihoods);
    EXPECT_EQ(same.seconds == none.seconds, asked == 1);
  }
  profile.optimization.set_use_profile(false);  // The server's defaults are something else,
  task_.collection = "plain";
  const size_t before = server_.score_requests().size();
  Ask(profile);
  EXPECT_EQ(server_.score_requests().size() - before, 1);
  profile.optimization.Clear();
  profile.optimization.set_preset(v1::PRESET_PAPER);  // and so is what a preset asks for.
  Ask(profile);
  EXPECT_EQ(server_.score_requests().size() - before, 2);
}

TEST_F(ItemRunnerTest, OracleGetsTheAnswer) {
  run_.methods[1].optimization.set_method(v1::METHOD_ORACLE);
  Ask(run_.methods[1]);
  EXPECT_EQ(server_.score_requests().at(0).oracle_answer(), " no");
}

TEST_F(ItemRunnerTest, InContextNeighborsStandBeforeThePromptNearestLast) {
  EvalMethod icl;
  icl.label = "icl";
  icl.kind = MethodKind::kInContext;
  icl.shots = 2;
  const ItemResult result = Ask(icl);
  EXPECT_EQ(server_.score_requests().at(0).prompt(), "n1\nAnswer: no\n\nn0\nAnswer: yes\n\nquestion 0\nAnswer:");
  EXPECT_EQ(server_.score_requests().at(0).optimization().method(), v1::METHOD_NONE);
  EXPECT_THAT(result.neighbor_ids, ElementsAre("ref-0", "ref-1"));
}

TEST_F(ItemRunnerTest, InContextPromptIsCutToTheContextWindow) {
  EvalMethod icl;
  icl.label = "icl";
  icl.kind = MethodKind::kInContext;
  icl.shots = 3;
  // The fake's tokens are bytes: 18 of the question and 16 of the nearest neighbor fit into 40 with 4 of a choice.
  const ItemResult result = Ask(icl, 40);
  EXPECT_EQ(server_.score_requests().at(0).prompt(), "n0\nAnswer: yes\n\nquestion 0\nAnswer:");
  EXPECT_THAT(result.neighbor_ids, ElementsAre("ref-0"));
}

TEST_F(ItemRunnerTest, VoteAsksNoModelAndSharesTheSearch) {
  EvalMethod knn;
  knn.label = "knn";
  knn.kind = MethodKind::kNeighborVote;
  knn.optimization.set_k(3);
  const ItemResult result = Ask(knn);
  EXPECT_EQ(result.predicted, 0);  // two " no" against one nearer " yes"
  EXPECT_TRUE(result.correct);
  knn.optimization.set_k(1);
  EXPECT_EQ(Ask(knn).predicted, 1);
  EXPECT_EQ(server_.search_requests().size(), 1);
  EXPECT_TRUE(server_.score_requests().empty());
}

// The fake's profile has k = 12 and all references, its server k = 1 and successful ones only.
TEST_F(ItemRunnerTest, BaselinesTakeTheNeighborsOfTheCollectionsProfile) {
  EvalMethod knn, icl;
  knn.label = "knn";
  knn.kind = MethodKind::kNeighborVote;
  icl.label = "icl";
  icl.kind = MethodKind::kInContext;
  EXPECT_THAT(Ask(knn).neighbor_ids, ElementsAre("ref-0", "ref-1", "ref-2"));
  EXPECT_THAT(Ask(icl).neighbor_ids, ElementsAre("ref-0", "ref-1", "ref-2"));
  ASSERT_EQ(server_.search_requests().size(), 1);  // Both have the same.
  EXPECT_EQ(server_.search_requests()[0].k(), 12);
  EXPECT_FALSE(server_.search_requests()[0].successful_only());
  // What the method sets goes before the profile; without the profile the server's defaults count.
  knn.optimization.set_k(2);
  shared_ = SharedByMethods();
  EXPECT_THAT(Ask(knn).neighbor_ids, ElementsAre("ref-0", "ref-1"));
  knn.optimization.clear_k();
  knn.optimization.set_use_profile(false);
  shared_ = SharedByMethods();
  EXPECT_THAT(Ask(knn).neighbor_ids, ElementsAre("ref-0"));
  EXPECT_TRUE(server_.search_requests().back().successful_only());
  // A filter is the search's, and another one is another search.
  EXPECT_FALSE(server_.search_requests().back().has_filter());
  knn.optimization.mutable_filter()->add_must()->set_key("a");
  Ask(knn);
  EXPECT_EQ(server_.search_requests().back().filter().must(0).key(), "a");
  // A preset has three successful ones, whatever profile and defaults say.
  EvalMethod paper = knn;
  paper.optimization.Clear();
  paper.optimization.set_preset(v1::PRESET_PAPER);
  shared_ = SharedByMethods();
  EXPECT_EQ(Ask(paper).neighbor_ids.size(), 3);
  EXPECT_EQ(server_.search_requests().back().k(), 3);
  EXPECT_TRUE(server_.search_requests().back().successful_only());
}

TEST_F(ItemRunnerTest, BaselinesTakeAllNeighborsWithinEpsilon) {
  EvalMethod knn;
  knn.label = "knn";
  knn.kind = MethodKind::kNeighborVote;
  knn.optimization.set_epsilon(0.65);
  EXPECT_THAT(Ask(knn).neighbor_ids, ElementsAre("ref-0", "ref-1"));  // At 0.5 and 0.6; the third is at 0.7.
  EXPECT_EQ(server_.search_requests()[0].k(), 64);
}

TEST_F(ItemRunnerTest, NeighborsOfOneCollectionAreNotThoseOfAnother) {
  EvalMethod knn;
  knn.label = "knn";
  knn.kind = MethodKind::kNeighborVote;
  Ask(knn);
  knn.optimization.set_collection("other");
  Ask(knn);
  ASSERT_EQ(server_.search_requests().size(), 2);
  EXPECT_EQ(server_.search_requests()[1].collection(), "other");
}

TEST_F(ItemRunnerTest, AQuestionIsNotItsOwnNeighbor) {
  item_.own_references = {"ref-0"};
  EvalMethod knn;
  knn.label = "knn";
  knn.kind = MethodKind::kNeighborVote;
  knn.optimization.set_k(2);
  EXPECT_THAT(Ask(knn).neighbor_ids, ElementsAre("ref-1", "ref-2"));
  Ask(run_.methods[1]);
  EXPECT_THAT(server_.score_requests().at(0).optimization().exclude_reference_ids(), ElementsAre("ref-0"));
}

TEST_F(ItemRunnerTest, GenerationIsGreedyAndExtracted) {
  task_.kind = TaskKind::kGeneration;
  task_.metric = Metric::kExactMatch;
  task_.extraction = "w\\w+";
  task_.stop = {"\n"};
  task_.max_tokens = 9;
  item_.choices.clear();
  item_.answer = " World.";
  const ItemResult result = Ask(run_.methods[0]);
  EXPECT_EQ(result.text, "Hello world");
  EXPECT_EQ(result.extracted, "world");
  EXPECT_EQ(result.wanted, "World.");
  EXPECT_TRUE(result.correct);
  EXPECT_EQ(result.completion_tokens, 2);
  const v1::SamplingOptions sampling = server_.generate_requests().at(0).sampling();
  EXPECT_EQ(sampling.temperature(), 0.0);
  EXPECT_EQ(sampling.max_tokens(), 9);
  EXPECT_THAT(sampling.stop(), ElementsAre("\n"));
}

}  // namespace
}  // namespace c3po
