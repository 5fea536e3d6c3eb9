// Runs eval, ablate, calibrate and the commands over a collection against a fake server.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "absl/types/span.h"
#include "client/eval/option_setting.h"
#include "tests/client/child_process.h"
#include "tests/client/fake_server.h"

namespace c3po {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

class EvalCliTest : public ::testing::Test {
 protected:
  EvalCliTest() : folder_(absl::StrCat(testing::TempDir(), "c3po_eval_cli_", getpid())) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_ + "/suite/science");
    Write("suite/suite.json", R"({"tasks": [{"name": "science", "group": "knowledge", "metric": "raw"}]})");
    Write("suite/science/heldout.jsonl", Samples(4));
    Write("suite/science/references.jsonl", Samples(60));
    server_.on_info = [](grpc::ServerContext*, v1::GetServerInfoResponse* info) {
      info->mutable_model()->set_digest("sha256:tiny");
      info->mutable_model()->set_moe_layers(6);
      info->mutable_model()->set_experts(32);
      info->mutable_default_optimization()->set_method(v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
      info->mutable_default_optimization()->set_k(3);
      info->mutable_default_optimization()->set_steps(10);
      return grpc::Status::OK;
    };
  }
  ~EvalCliTest() override { std::filesystem::remove_all(folder_); }

  // Questions whose right choice has an "e" more than the wrong one, which the fake's model therefore gets wrong.
  static std::string Samples(int count) {
    std::string lines;
    for (int i = 0; i < count; ++i) {
      absl::StrAppend(&lines, R"({"id": "s)", i, R"(", "prompt": "q)", i,
                      R"(", "answer": " the", "choices": [" a", " the"]})", "\n");
    }
    return lines;
  }

  std::string Write(const std::string& name, const std::string& text) const {
    const std::string path = absl::StrCat(folder_, "/", name);
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  std::string Read(const std::string& name) const {
    std::ifstream file(absl::StrCat(folder_, "/", name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  std::vector<Json> Items(const std::string& run) const {
    std::vector<Json> items;
    for (const absl::string_view line : absl::StrSplit(Read(run + "/items.jsonl"), '\n', absl::SkipEmpty())) {
      items.push_back(Json::parse(line.begin(), line.end()));
    }
    return items;
  }

  std::vector<std::string> Arguments(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), C3PO_CLI_BINARY);
    return arguments;
  }
  ChildResult Run(const std::vector<std::string>& arguments) const {
    return ChildProcess(Arguments(arguments), "", {{"C3PO_SERVER", server_.address()}, {"C3PO_CACHE_DIR", folder_}})
        .Wait();
  }
  ChildResult Eval(std::vector<std::string> more) const {
    std::vector<std::string> arguments = {"eval",    "--suite", folder_ + "/suite", "--task",
                                          "science", "--out",   folder_ + "/run"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Run(arguments);
  }
  // The fake's model gets the answer right once its pathway is optimized.
  void LetOptimizationHelp() {
    server_.on_score = [](grpc::ServerContext*, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
      const bool helped = request.optimization().method() == v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT;
      for (const std::string& continuation : request.continuations()) {
        v1::ContinuationScore& score = *response->add_scores();
        score.set_log_likelihood((continuation == " the") == helped ? -1 : -2);
        score.set_token_count(1);
      }
      return grpc::Status::OK;
    };
  }

  const std::string folder_;
  FakeServer server_;
};

TEST_F(EvalCliTest, EvalWritesARunAndPrintsItsTable) {
  LetOptimizationHelp();
  const ChildResult result = Eval({"--methods", "none,ngd,knn,fast=ngd", "--steps", "7", "--set", "fast.steps=2",
                                   "--limit", "3", "--report", folder_ + "/report.html"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("science"), HasSubstr("0/3"), HasSubstr("3/3"), HasSubstr("+100.0")));
  // Questions, labels and neighbors as they read.
  EXPECT_THAT(Read("report.html"),
              AllOf(HasSubstr("<html"), HasSubstr(">q0</td><td class=\"text\">a</td><td class=\"text\">the</td>")));
  EXPECT_EQ(Items("run").size(), 12);
  const Json run = Json::parse(Read("run/run.json"));
  EXPECT_EQ(run.at("tasks")[0].at("metric"), "raw");
  EXPECT_EQ(run.at("tasks")[0].at("items"), 3);
  EXPECT_EQ(run.at("methods")[1].at("optimization").at("steps"), 7);
  EXPECT_EQ(run.at("methods")[2].at("kind"), "knn_vote");
  EXPECT_EQ(run.at("methods")[3].at("optimization").at("steps"), 2);
  EXPECT_THAT(run.at("command_line").get<std::string>(), HasSubstr("c3po eval --suite"));
}

TEST_F(EvalCliTest, EvalGoesOnAndRefusesOtherSettings) {
  ASSERT_EQ(Eval({"--methods", "none,ngd", "--limit", "2"}).exit_code, 0);
  const size_t asked = server_.score_requests().size();
  const ChildResult more = Eval({"--methods", "none,ngd", "--resume"});
  EXPECT_EQ(more.exit_code, 0) << more.err;
  EXPECT_THAT(more.err, HasSubstr("holds 4 answers, 4 are missing"));
  EXPECT_EQ(server_.score_requests().size(), asked + 4);
  const ChildResult other = Eval({"--methods", "none,ngd", "--k", "9"});
  EXPECT_EQ(other.exit_code, 6);
  EXPECT_THAT(other.err, HasSubstr("holds another run; different: methods"));
  EXPECT_EQ(Run({"eval", "--suite", folder_ + "/suite", "--out", folder_ + "/new", "--resume"}).exit_code, 5);
}

TEST_F(EvalCliTest, EvalImportsTheSuitesReferences) {
  EXPECT_EQ(Eval({"--methods", "none", "--import"}).exit_code, 0);
  EXPECT_EQ(server_.add_requests().size(), 60);
  EXPECT_EQ(server_.add_requests().at(0).collection(), "science");
}

TEST_F(EvalCliTest, EvalSaysWhatIsMissing) {
  const ChildResult nothing = Run({"eval", "--out", folder_ + "/run"});
  EXPECT_EQ(nothing.exit_code, 4);
  EXPECT_THAT(nothing.err, HasSubstr("no questions: give --task, --group or --suite"));
  EXPECT_THAT(Eval({"--methods", "magic"}).err, HasSubstr("method \"magic\" is none of none, ngd"));
  const ChildResult empty = Eval({"--collection", "nobody"});
  EXPECT_EQ(empty.exit_code, 6);
  EXPECT_THAT(empty.err, HasSubstr("collection nobody holds no usable references; --import adds"));
  EXPECT_EQ(Run({"eval", "--suite", folder_ + "/suite", "--task", "chemistry", "--out", folder_ + "/run"}).exit_code,
            5);
}

// The fake has the questions named as references: by their text the even ones, at distance 0 the others.
void PutAmongReferences(FakeServer* server, const std::set<std::string>& questions) {
  server->on_search = [questions](grpc::ServerContext*, const v1::SearchReferencesRequest& request,
                                  v1::SearchReferencesResponse* response) {
    const bool known = questions.count(request.text()) > 0, by_text = (request.text().back() - '0') % 2 == 0;
    auto& hit = *response->add_hits();
    hit.set_distance(known && !by_text ? 0 : 0.4);
    hit.mutable_reference()->set_id("ref-0");
    hit.mutable_reference()->mutable_sample()->set_prompt(known && by_text ? request.text() + "\n" : "another");
    hit.mutable_reference()->mutable_sample()->set_answer(" the");
    return grpc::Status::OK;
  };
}

TEST_F(EvalCliTest, QuestionsAmongTheReferencesAreToldAndLeftOutUnlessAskedFor) {
  PutAmongReferences(&server_, {"q1", "q2"});
  const ChildResult result = Eval({"--methods", "none,ngd,knn"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("task science: 2 of 4 questions are among the references of science; they are left "
                                    "out (--include-references asks them)"));
  EXPECT_THAT(result.out,
              HasSubstr("Task science: 2 questions are among the references of science; they were left out."));
  std::set<std::string> asked;
  for (const Json& item : Items("run")) asked.insert(item.at("id"));
  EXPECT_THAT(asked, ElementsAre("s0", "s3"));
  const Json task = Json::parse(Read("run/run.json")).at("tasks")[0];
  EXPECT_EQ(task.at("items"), 2);
  EXPECT_EQ(task.at("among_references"), 2);
  // Asked for, the same run grows by them.
  const ChildResult all = Eval({"--methods", "none,ngd,knn", "--include-references"});
  EXPECT_EQ(all.exit_code, 0) << all.err;
  EXPECT_EQ(Items("run").size(), 12);
  EXPECT_THAT(all.out, HasSubstr("2 questions are among the references of science; they were asked"));
}

TEST_F(EvalCliTest, AnEvaluationOfTheReferencesThemselvesIsRefused) {
  PutAmongReferences(&server_, {"q0", "q1", "q2", "q3"});
  const ChildResult result = Eval({"--methods", "ngd"});
  EXPECT_EQ(result.exit_code, 6);
  EXPECT_THAT(result.err, HasSubstr("every question is among the references of science; --include-references"));
  EXPECT_TRUE(server_.score_requests().empty());
  // The model alone reads none.
  const size_t searches = server_.search_requests().size();
  EXPECT_EQ(Eval({"--methods", "none"}).exit_code, 0);
  EXPECT_EQ(server_.search_requests().size(), searches);
}

TEST_F(EvalCliTest, TheCollectionsSettingsAreWrittenAndBelongToTheRun) {
  ASSERT_EQ(Eval({"--methods", "none,knn"}).exit_code, 0);
  const Json collections = Json::parse(Read("run/run.json")).at("collections");
  ASSERT_EQ(collections.size(), 1);
  EXPECT_EQ(collections[0].at("name"), "science");
  EXPECT_EQ(collections[0].at("effective_optimization").at("k"), 12);
  for (const v1::SearchReferencesRequest& request : server_.search_requests()) {
    EXPECT_TRUE(request.k() == 12 || request.k() == 4) << request.k();  // Four: the look-up of known questions.
  }
  const ChildResult html = Run({"report", folder_ + "/run", "--out", folder_ + "/report.html"});
  EXPECT_EQ(html.exit_code, 0) << html.err;
  EXPECT_THAT(Read("report.html"), HasSubstr("collection science"));
}

TEST_F(EvalCliTest, AMethodThatMayNotBeAskedEndsNothingElse) {
  server_.on_score = [](grpc::ServerContext*, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    if (request.optimization().method() == v1::METHOD_ORACLE) {
      return grpc::Status(grpc::StatusCode::PERMISSION_DENIED, "the oracle is for administrators");
    }
    for (int i = 0; i < request.continuations_size(); ++i) response->add_scores()->set_token_count(1);
    return grpc::Status::OK;
  };
  const ChildResult result = Eval({"--methods", "oracle,none,ngd"});
  EXPECT_EQ(result.exit_code, 10);
  const std::string told = "method oracle failed 1 time and was given up: the oracle is for administrators";
  const size_t at = result.err.find(told);
  ASSERT_NE(at, std::string::npos) << result.err;
  EXPECT_EQ(result.err.find(told, at + 1), std::string::npos) << result.err;
  EXPECT_EQ(Items("run").size(), 8);
  EXPECT_THAT(result.out, AllOf(HasSubstr("4 items compared"), HasSubstr("Method oracle answered no question")));
}

TEST_F(EvalCliTest, EvalTellsTheServersWarningsOnce) {
  server_.on_score = [](grpc::ServerContext*, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    for (int i = 0; i < request.continuations_size(); ++i) response->add_scores()->set_token_count(1);
    if (request.prompt() != "q1") response->mutable_optimization()->add_warnings("continuations begin without a space");
    return grpc::Status::OK;
  };
  const ChildResult result = Eval({"--methods", "none"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("warning, 3 answers: science: continuations begin without a space\n"));
  const std::vector<Json> items = Items("run");
  EXPECT_EQ(std::count_if(items.begin(), items.end(), [](const Json& item) { return item.contains("warnings"); }), 3);
}

TEST_F(EvalCliTest, FailedAnswersAreToldAndFailTheRun) {
  server_.on_score = [](grpc::ServerContext*, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    if (request.prompt() == "q1") return grpc::Status(grpc::StatusCode::INTERNAL, "a bad question");
    for (int i = 0; i < request.continuations_size(); ++i) response->add_scores()->set_token_count(1);
    return grpc::Status::OK;
  };
  const ChildResult result = Eval({"--methods", "none"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("science, question s1, method none: INTERNAL: a bad question"));
  EXPECT_THAT(result.err, HasSubstr("1 answer failed"));
  EXPECT_EQ(Items("run").size(), 3);
}

TEST_F(EvalCliTest, InterruptEndsCleanlyAndKeepsTheAnswers) {
  absl::Notification blocked;
  server_.on_score = [&](grpc::ServerContext* context, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    if (request.prompt() == "q2") {
      blocked.Notify();
      while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
      return grpc::Status::CANCELLED;
    }
    for (int i = 0; i < request.continuations_size(); ++i) response->add_scores()->set_token_count(1);
    return grpc::Status::OK;
  };
  ChildProcess child(Arguments({"eval", "--suite", folder_ + "/suite", "--methods", "none", "--concurrency", "1",
                                "--out", folder_ + "/run", "--server", server_.address()}));
  ASSERT_TRUE(blocked.WaitForNotificationWithTimeout(absl::Seconds(60)));
  child.Signal(SIGINT);
  const ChildResult result = child.Wait();
  EXPECT_EQ(result.exit_code, 9);
  EXPECT_THAT(result.err, HasSubstr("the same command goes on"));
  EXPECT_THAT(result.out, HasSubstr("science"));
  EXPECT_EQ(Items("run").size(), 2);
}

TEST_F(EvalCliTest, AblateMovesOneVariable) {
  const ChildResult result = Run({"ablate", "--variable", "k", "--points", "2,4", "--suite", folder_ + "/suite",
                                  "--out", folder_ + "/run", "--steps", "5"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const Json run = Json::parse(Read("run/run.json"));
  EXPECT_EQ(run.at("ablation").at("variable"), "k");
  EXPECT_EQ(run.at("ablation").at("points")[1].at("value"), 4);
  EXPECT_EQ(run.at("ablation").at("points")[1].at("method_label"), "k=4");
  EXPECT_EQ(run.at("methods")[2].at("optimization").at("k"), 4);
  EXPECT_EQ(run.at("methods")[2].at("optimization").at("steps"), 5);
  EXPECT_EQ(Items("run").size(), 12);
}

TEST_F(EvalCliTest, AblateMakesAndDeletesSizedCollections) {
  const ChildResult result = Run({"ablate", "--variable", "reference-set-size", "--suite", folder_ + "/suite", "--out",
                                  folder_ + "/run", "--limit", "1"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  std::map<std::string, int> added;
  for (const v1::AddReferencesRequest& request : server_.add_requests()) {
    // Only the first message of a stream names its collection.
    if (!request.collection().empty()) ++added[request.collection()];
  }
  EXPECT_THAT(added, testing::UnorderedElementsAre(testing::Key("science.size20"), testing::Key("science.size50")));
  std::vector<std::string> deleted;
  for (const v1::DeleteReferencesRequest& request : server_.delete_requests()) deleted.push_back(request.collection());
  EXPECT_THAT(deleted, ElementsAre("science.size20", "science.size50"));
  std::vector<std::string> asked;
  for (const v1::ScoreRequest& request : server_.score_requests()) asked.push_back(request.optimization().collection());
  EXPECT_THAT(asked, ElementsAre("", "science.size20", "science.size50", "science"));
}

// References whose prompts the fake's List gives with choices.
// Each with a choice that no other one has, so that there are no labels.
void ServeReferences(FakeServer* server, int count) {
  server->on_list = [count](grpc::ServerContext*, const v1::ListReferencesRequest&,
                            v1::ListReferencesResponse* response) {
    for (int i = 0; i < count; ++i) {
      v1::Reference& reference = *response->add_references();
      reference.set_id(absl::StrCat("ref-", i));
      reference.mutable_sample()->set_prompt(absl::StrCat("q", i));
      reference.mutable_sample()->set_answer(" the");
      reference.mutable_sample()->add_choices(" a");
      reference.mutable_sample()->add_choices(" the");
      reference.mutable_sample()->add_choices(absl::StrCat(" other ", i));
    }
    return grpc::Status::OK;
  };
}

int AskedAboutReferences(const FakeServer& server) {
  const std::vector<v1::ScoreRequest> requests = server.score_requests();
  return static_cast<int>(std::count_if(requests.begin(), requests.end(), [](const v1::ScoreRequest& request) {
    return absl::StartsWith(request.prompt(), "ref") && request.optimization().method() == v1::METHOD_NONE;
  }));
}

// References of the questions' labels, but for one of another.
void ServeLabelledReferences(FakeServer* server) {
  server->on_list = [](grpc::ServerContext*, const v1::ListReferencesRequest&, v1::ListReferencesResponse* response) {
    for (int i = 0; i < 8; ++i) {
      v1::Reference& reference = *response->add_references();
      reference.set_id(absl::StrCat("ref-", i));
      reference.mutable_sample()->set_prompt(absl::StrCat("ref ", i));
      reference.mutable_sample()->set_answer(i == 7 ? " another" : i % 4 == 0 ? " a" : " the");
    }
    return grpc::Status::OK;
  };
}

TEST_F(EvalCliTest, TheLabelsOffsetIsFittedToReferencesThatAreScoredOnce) {
  ServeLabelledReferences(&server_);
  const ChildResult result = Eval({"--methods", "none,ngd", "--limit", "3", "--report", folder_ + "/report.html"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  // The fake's model prefers " a", of whose references there are fewer.
  EXPECT_THAT(result.out, AllOf(HasSubstr("majority "), HasSubstr("batch-offset "), HasSubstr("label-offset "),
                                HasSubstr("a, the"), HasSubstr("2 / 5")));
  EXPECT_THAT(Read("report.html"), HasSubstr(">label-offset<"));
  EXPECT_EQ(AskedAboutReferences(server_), 7);
  EXPECT_EQ(Items("run").size(), 6);
  std::map<std::string, int> right;
  for (const absl::string_view line : absl::StrSplit(Read("run/baselines.jsonl"), '\n', absl::SkipEmpty())) {
    const Json item = Json::parse(line.begin(), line.end());
    right[item.at("method")] += item.at("correct").get<bool>();
  }
  EXPECT_EQ(right.at("majority"), 3);
  EXPECT_EQ(right.at("label-offset"), 3);
  // The run goes on, and pays for none of them again.
  const ChildResult more = Eval({"--methods", "none,ngd"});
  EXPECT_EQ(more.exit_code, 0) << more.err;
  EXPECT_EQ(AskedAboutReferences(server_), 7);
}

TEST_F(EvalCliTest, AnOptionBoundsWhatTheLabelsOffsetCosts) {
  ServeLabelledReferences(&server_);
  const ChildResult none = Eval({"--methods", "none", "--offset-references", "0"});
  EXPECT_EQ(none.exit_code, 0) << none.err;
  EXPECT_EQ(AskedAboutReferences(server_), 0);
  EXPECT_THAT(none.out, HasSubstr("the row label-offset is missing there (--offset-references)"));
  EXPECT_EQ(Eval({"--methods", "none", "--offset-references", "3"}).exit_code, 0);
  EXPECT_EQ(AskedAboutReferences(server_), 3);
  EXPECT_EQ(Eval({"--methods", "none", "--offset-references", "5"}).exit_code, 0);
  EXPECT_EQ(AskedAboutReferences(server_), 5);
}

TEST_F(EvalCliTest, AReferenceThatCannotBeScoredIsToldAndLeftOut) {
  ServeLabelledReferences(&server_);
  server_.on_score = [](grpc::ServerContext*, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    if (request.prompt() == "ref 2") return grpc::Status(grpc::StatusCode::INTERNAL, "is not finite");
    for (int i = 0; i < request.continuations_size(); ++i) {
      response->add_scores()->set_token_count(1);
      response->mutable_scores(i)->set_log_likelihood(-1 - i);
    }
    return grpc::Status::OK;
  };
  const ChildResult result = Eval({"--methods", "none"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("1 reference could not be scored; the labels' offset is fitted without it"));
  EXPECT_THAT(result.out, HasSubstr("label-offset"));
}

// The scores under an offset come with those without: one question is one call for both.
TEST_F(EvalCliTest, MethodsThatDifferInTheOffsetAloneAreAskedOnce) {
  ServeLabelledReferences(&server_);
  server_.on_score = [](grpc::ServerContext*, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    const bool optimized = request.optimization().method() != v1::METHOD_NONE;
    for (int i = 0; i < request.continuations_size(); ++i) {
      v1::ContinuationScore& score = *response->add_scores();
      score.set_token_count(1);
      score.set_log_likelihood(optimized ? -2 - i : -1 - i);                            // " a"
      if (request.optimization().use_offset()) score.set_offset_score(-4.0 + 2.0 * i);  // " the", which is right
    }
    response->mutable_optimization()->add_warnings("the label offset is that of the model alone");
    response->mutable_optimization()->add_warnings("another");
    return grpc::Status::OK;
  };
  const ChildResult result = Eval({"--methods", "none,offset,ngd,ngd+offset,slow=ngd", "--set", "slow.steps=50",
                                   "--no-profile", "--limit", "3", "--offset-references", "0"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  std::map<std::string, int> right, asked;
  for (const Json& item : Items("run")) {
    const std::string method = item.at("method");
    right[method] += item.at("correct").get<bool>();
    EXPECT_EQ(item.contains("offset_scores"), method == "offset" || method == "ngd+offset") << method;
    // The other warning is of every answer.
    EXPECT_EQ(item.at("warnings").size(), method == "ngd" ? 1 : 2) << method;
  }
  EXPECT_EQ(right,
            (std::map<std::string, int>{{"none", 0}, {"offset", 3}, {"ngd", 0}, {"ngd+offset", 3}, {"slow", 0}}));
  for (const v1::ScoreRequest& request : server_.score_requests()) {
    if (request.optimization().method() == v1::METHOD_NONE) continue;
    ++asked[absl::StrCat(request.optimization().steps(), request.optimization().use_offset() ? " with offset" : "")];
  }
  EXPECT_EQ(asked, (std::map<std::string, int>{{"0 with offset", 3}, {"50", 3}}));
  // In pairs, and first of all in words.
  EXPECT_THAT(result.out, AllOf(HasSubstr("ngd+offset against offset"),
                                HasSubstr("C3PO (ngd+offset) against the offset alone (offset): 0.0 [")));
}

TEST_F(EvalCliTest, ARowOfEveryReportIsNoMethodsName) {
  const ChildResult result = Eval({"--methods", "none,majority=ngd"});
  EXPECT_EQ(result.exit_code, 4);
  EXPECT_THAT(result.err, HasSubstr("majority is a row that every report has by itself: no method may be called so"));
}

TEST_F(EvalCliTest, CalibrateStoresWhatHelps) {
  LetOptimizationHelp();
  ServeReferences(&server_, 30);
  const ChildResult result = Run({"calibrate", "--collection", "science", "--questions", "20", "--k", "6"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("accuracy 0.0 % → 100.0 %"), HasSubstr("10 improved, 0 worsened"),
                                HasSubstr("Off topic: 24 of 24 prompts")));
  ASSERT_EQ(server_.profile_requests().size(), 1);
  const v1::SetProfileRequest stored = server_.profile_requests()[0];
  EXPECT_EQ(stored.collection(), "science");
  EXPECT_EQ(stored.profile().method(), v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  EXPECT_EQ(stored.profile().k(), 6);
  EXPECT_FALSE(stored.profile().has_collection() || stored.profile().has_use_profile());
  EXPECT_EQ(stored.profile().exclude_reference_ids_size(), 0);
  const Json notes = Json::parse(stored.notes());
  EXPECT_EQ(notes.at("lift").at("value"), 1.0);
  EXPECT_GT(notes.at("tried").size(), 5);
  // Leave-one-out: every question names itself, unless nothing is optimized.
  for (const v1::ScoreRequest& request : server_.score_requests()) {
    if (request.optimization().method() == v1::METHOD_NONE) continue;
    ASSERT_EQ(request.optimization().exclude_reference_ids_size(), 1);
    EXPECT_EQ(request.optimization().exclude_reference_ids(0), absl::StrCat("ref-", request.prompt().substr(1)));
    EXPECT_FALSE(request.optimization().use_profile());
  }
}

// Every optimized answer is another than the model's own, and its nearest reference that far away.
void ChangeAnswersAtDistance(FakeServer* server, double distance) {
  server->on_generate = [distance](grpc::ServerContext*, const v1::GenerateRequest& request,
                                   grpc::ServerWriter<v1::GenerateResponse>* writer) {
    const bool none = request.optimization().method() == v1::METHOD_NONE;
    v1::GenerateResponse event;
    event.mutable_optimization()->set_gate(none ? v1::GATE_DECISION_NOT_REQUESTED : v1::GATE_DECISION_APPLIED);
    if (!none) event.mutable_optimization()->set_nearest_distance(distance);
    writer->Write(event);
    event.mutable_delta()->set_text(none ? "an answer" : "nonsense");
    writer->Write(event);
    event.mutable_summary()->set_finish_reason(v1::FINISH_REASON_STOP);
    writer->Write(event);
    return grpc::Status::OK;
  };
}

TEST_F(EvalCliTest, CalibrateSparesOffTopicPromptsThatItsSettingsWouldChange) {
  LetOptimizationHelp();
  ServeReferences(&server_, 30);
  ChangeAnswersAtDistance(&server_, 1.25);
  const ChildResult result = Run({"calibrate", "--collection", "science", "--questions", "20"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("Off topic: 0 of 24 prompts"),
                                HasSubstr("The lift above was measured without this limit.")));
  ASSERT_EQ(server_.profile_requests().size(), 1);
  const v1::GateOptions gate = server_.profile_requests()[0].profile().gate();
  EXPECT_GT(gate.max_neighbor_distance(), 1.2);
  EXPECT_LT(gate.max_neighbor_distance(), 1.25);
}

// A limit below the distances between the collection's own references would store a profile that helps no request.
TEST_F(EvalCliTest, CalibrateSetsNoLimitThatLeavesItsOwnReferencesAlone) {
  LetOptimizationHelp();
  ServeReferences(&server_, 30);
  ChangeAnswersAtDistance(&server_, 0.25);  // The fake's references are 0.5 apart.
  const ChildResult result = Run({"calibrate", "--collection", "science", "--questions", "20"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("would leave alone 29 of 29 of its references"));
  ASSERT_EQ(server_.profile_requests().size(), 1);
  EXPECT_FALSE(server_.profile_requests()[0].profile().gate().has_max_neighbor_distance());
}

TEST_F(EvalCliTest, CalibrateEndedBySignalStoresTheBestSoFarAndGoesOn) {
  ServeReferences(&server_, 30);
  absl::Notification blocked;
  std::atomic<bool> slow = true;
  // The fake's model is helped by descent; the first point with mixing weights in place of shifts takes forever.
  server_.on_score = [&](grpc::ServerContext* context, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    const v1::OptimizationOptions& options = request.optimization();
    if (slow && options.application_rule() == v1::APPLICATION_RULE_EVERY_NEW_TOKEN) {
      if (!blocked.HasBeenNotified()) blocked.Notify();
      while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
      return grpc::Status::CANCELLED;
    }
    const bool helped = options.method() == v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT;
    for (const std::string& continuation : request.continuations()) {
      v1::ContinuationScore& score = *response->add_scores();
      score.set_log_likelihood((continuation == " the") == helped ? -1 : -2);
      score.set_token_count(1);
    }
    return grpc::Status::OK;
  };
  const std::vector<std::string> command = {
      "calibrate", "--collection",    "science",       "--questions", "20",      "--cost-weight",         "0",
      "--server",  server_.address(), "--concurrency", "1",           "--state", folder_ + "/state.jsonl"};
  ChildProcess child(Arguments(command));
  ASSERT_TRUE(blocked.WaitForNotificationWithTimeout(absl::Seconds(60)));
  // As timeout(1) signals the process and then its group; stopped, it sees both at once on any machine. Two of one kind
  // would be one then.
  for (const int signal : {SIGSTOP, SIGTERM, SIGINT, SIGCONT}) child.Signal(signal);
  const ChildResult ended = child.Wait();
  EXPECT_EQ(ended.exit_code, 9) << ended.err;
  EXPECT_THAT(ended.err, AllOf(HasSubstr("the best point so far is checked"),
                               HasSubstr("the same command goes on from " + folder_ + "/state.jsonl")));
  ASSERT_EQ(server_.profile_requests().size(), 1);
  EXPECT_EQ(server_.profile_requests()[0].profile().method(), v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  EXPECT_TRUE(Json::parse(server_.profile_requests()[0].notes()).at("ended"));
  // It goes on: what was answered is not asked again.
  slow = false;
  std::map<std::string, int> times;
  const auto count = [&] {
    for (const v1::ScoreRequest& request : server_.score_requests()) ++times[request.SerializeAsString()];
  };
  const ChildResult rest = Run(command);
  EXPECT_EQ(rest.exit_code, 0) << rest.err;
  EXPECT_THAT(rest.out, HasSubstr("answers of a calibration that was ended, or stored nothing: it goes on"));
  EXPECT_EQ(server_.profile_requests().size(), 2);
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/state.jsonl"));
  count();
  int twice = 0;
  for (const auto& [request, asked] : times) twice += asked > 1 ? 1 : 0;
  EXPECT_LE(twice, 1);  // The one that was being asked.
}

// A sample with an id of its own keeps it when its answer is corrected: the answers kept so far are of other neighbors.
TEST_F(EvalCliTest, CalibrateBeginsAnewWhereAReferenceSaysSomethingElse) {
  LetOptimizationHelp();
  std::string answer = " the";
  server_.on_list = [&](grpc::ServerContext*, const v1::ListReferencesRequest&, v1::ListReferencesResponse* response) {
    for (int i = 0; i < 30; ++i) {
      v1::Reference& reference = *response->add_references();
      reference.set_id(absl::StrCat("science:", i));
      v1::ReferenceSample& sample = *reference.mutable_sample();
      sample.set_prompt(absl::StrCat("q", i));
      sample.set_answer(i == 29 ? answer : " the");
      sample.add_choices(" a");
      sample.add_choices(" the");
    }
    return grpc::Status::OK;
  };
  // A budget that is spent at once leaves the answers for the next call.
  const std::vector<std::string> command = {
      "calibrate", "--collection",           "science",  "--questions", "20", "--budget-seconds", "0.000001",
      "--state",   folder_ + "/state.jsonl", "--dry-run"};
  ASSERT_EQ(Run(command).exit_code, 0);
  EXPECT_THAT(Run(command).out, HasSubstr("it goes on"));
  answer = " a";
  EXPECT_THAT(Run(command).out, Not(HasSubstr("it goes on")));
}

TEST_F(EvalCliTest, CalibrateGoesOnFromTheAnswersOfADryRunAndThenRemovesThem) {
  ServeReferences(&server_, 30);
  const std::string state = folder_ + "/state.jsonl";
  std::vector<std::string> command = {"calibrate", "--collection", "science", "--questions",
                                      "8",         "--state",      state,     "--dry-run"};
  ASSERT_EQ(Run(command).exit_code, 0);
  EXPECT_TRUE(std::filesystem::exists(state));
  const size_t asked = server_.score_requests().size();
  command.pop_back();
  const ChildResult stored = Run(command);
  EXPECT_EQ(stored.exit_code, 0) << stored.err;
  EXPECT_THAT(stored.out, HasSubstr("it goes on"));
  EXPECT_EQ(server_.score_requests().size(), asked);
  EXPECT_EQ(server_.profile_requests().size(), 1);
  EXPECT_FALSE(std::filesystem::exists(state));
}

TEST_F(EvalCliTest, CalibrateKeepsItsAnswersInNoFileOfAnotherKind) {
  ServeReferences(&server_, 30);
  const std::string samples = Write("samples.jsonl", Samples(4)), before = Read("samples.jsonl");
  for (const char* flag : {"--dry-run", "--fresh"}) {
    const ChildResult result = Run({"calibrate", "--collection", "science", "--state", samples, flag});
    EXPECT_EQ(result.exit_code, 6);
    EXPECT_THAT(result.err, HasSubstr("samples.jsonl: holds something else than the answers of a calibration"));
    EXPECT_EQ(Read("samples.jsonl"), before);
  }
  EXPECT_TRUE(server_.score_requests().empty());
}

TEST_F(EvalCliTest, CalibrateEndedWithoutAPointThatHelpsLeavesTheProfile) {
  ServeReferences(&server_, 30);
  absl::Notification blocked;
  server_.on_score = [&](grpc::ServerContext* context, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    if (request.optimization().application_rule() == v1::APPLICATION_RULE_EVERY_NEW_TOKEN) {
      if (!blocked.HasBeenNotified()) blocked.Notify();
      while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
      return grpc::Status::CANCELLED;
    }
    for (int i = 0; i < request.continuations_size(); ++i) response->add_scores()->set_token_count(1);
    return grpc::Status::OK;
  };
  ChildProcess child(Arguments({"calibrate", "--collection", "science", "--questions", "8", "--server",
                                server_.address(), "--concurrency", "1", "--state", folder_ + "/state.jsonl"}));
  ASSERT_TRUE(blocked.WaitForNotificationWithTimeout(absl::Seconds(60)));
  child.Signal(SIGINT);
  const ChildResult ended = child.Wait();
  EXPECT_EQ(ended.exit_code, 9) << ended.err;
  EXPECT_THAT(ended.out, AllOf(HasSubstr("Nothing is stored"), Not(HasSubstr("C3PO does not help"))));
  EXPECT_TRUE(server_.profile_requests().empty());
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/state.jsonl"));
}

TEST_F(EvalCliTest, CalibrateLeavesOutEveryReferenceOfTheQuestionsPrompt) {
  server_.on_list = [](grpc::ServerContext*, const v1::ListReferencesRequest&, v1::ListReferencesResponse* response) {
    for (int i = 0; i < 16; ++i) {  // Each prompt twice, relabeled.
      v1::Reference& reference = *response->add_references();
      reference.set_id(absl::StrCat("ref-", i));
      reference.mutable_sample()->set_prompt(absl::StrCat("q", i / 2));
      reference.mutable_sample()->set_answer(i % 2 == 0 ? " a" : " the");
      reference.mutable_sample()->add_choices(" a");
      reference.mutable_sample()->add_choices(" the");
    }
    return grpc::Status::OK;
  };
  PutAmongReferences(&server_, {"q0", "q1"});
  const std::string heldout = Write("heldout.jsonl", Samples(4));
  const ChildResult result = Run({"calibrate", "--collection", "science", "--questions", "8", "--dry-run", "--heldout",
                                  heldout, "--steps", "1", "--learning-rate", "0.1", "--application", "shift"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("2 of 4 questions are among the references of science and are left out"));
  for (const v1::ScoreRequest& request : server_.score_requests()) {
    if (request.optimization().exclude_reference_ids_size() == 0) continue;
    const int number = std::stoi(request.prompt().substr(1));
    EXPECT_THAT(request.optimization().exclude_reference_ids(),
                ElementsAre(absl::StrCat("ref-", 2 * number), absl::StrCat("ref-", 2 * number + 1)));
  }
}

TEST_F(EvalCliTest, CalibrateSaysWhenC3poDoesNotHelp) {
  ServeReferences(&server_, 30);
  const ChildResult dry = Run({"calibrate", "--collection", "science", "--questions", "8", "--dry-run"});
  EXPECT_EQ(dry.exit_code, 0) << dry.err;
  EXPECT_THAT(dry.out, HasSubstr("C3PO does not help on this collection"));
  EXPECT_TRUE(server_.profile_requests().empty());
  EXPECT_EQ(Run({"calibrate", "--collection", "science", "--questions", "8"}).exit_code, 0);
  ASSERT_EQ(server_.profile_requests().size(), 1);
  EXPECT_EQ(server_.profile_requests()[0].profile().method(), v1::METHOD_NONE);
  ServeReferences(&server_, 2);
  const ChildResult few = Run({"calibrate", "--collection", "science"});
  EXPECT_EQ(few.exit_code, 6);
  EXPECT_THAT(few.err, HasSubstr("holds 2 questions to calibrate with"));
}

TEST_F(EvalCliTest, CalibrateTriesThePriorOnWhatItWasNotFittedTo) {
  ServeReferences(&server_, 30);
  const auto asked = [&](int questions) {
    const size_t before = server_.score_requests().size();
    const ChildResult result =
        Run({"calibrate", "--collection", "tuned", "--questions", absl::StrCat(questions), "--budget-seconds", "0"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    std::set<std::string> prompts;
    bool prior = false;
    const std::vector<v1::ScoreRequest> requests = server_.score_requests();
    for (const v1::ScoreRequest& request : absl::MakeConstSpan(requests).subspan(before)) {
      prompts.insert(request.prompt());
      prior = prior || request.optimization().method() == v1::METHOD_COLLECTION_PRIOR;
    }
    const bool says_not = absl::StrContains(
        result.out,
        "The prior is not tried: 12 references were held apart from it, fewer than half of --questions 25.");
    EXPECT_NE(prior, says_not) << result.out;
    return std::make_pair(prompts.size(), prior);
  };
  EXPECT_EQ(asked(24), std::make_pair(size_t{12}, true));
  EXPECT_EQ(asked(25), std::make_pair(size_t{25}, false));
}

TEST_F(EvalCliTest, RefsTuneShowsEpochsAndTheOutcome) {
  const ChildResult result = Run({"refs", "tune", "--collection", "science", "--epochs", "3", "--critical-layers",
                                  "27-29", "--objective", "answer", "--successful-only", "--prompt-positions", "32"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(
      result.out,
      AllOf(
          HasSubstr("0.6250"),
          HasSubstr("prior stored: layers 27-29, fitted to 240 references; on 60 held apart loss 0.8750 → 0.6250\n")));
  const v1::TunePriorRequest request = server_.tune_requests().at(0);
  EXPECT_EQ(request.collection(), "science");
  EXPECT_EQ(request.epochs(), 3);
  EXPECT_EQ(request.critical_layers_size(), 3);
  EXPECT_EQ(request.objective(), v1::OBJECTIVE_ANSWER);
  EXPECT_TRUE(request.successful_only());
  EXPECT_EQ(request.prompt_positions(), 32);
  EXPECT_FALSE(request.has_batch_size());
  EXPECT_THAT(Run({"refs", "tune", "--collection", "stubborn"}).out, HasSubstr("no prior stored"));
}

TEST_F(EvalCliTest, RefsTuneFitsAnOffsetAfterTheModelAloneOrAMethod) {
  const ChildResult result = Run({"refs", "tune", "--offset", "--collection", "science"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(
      result.out,
      "collection science: label offset of the model alone: scale 1.5, \" a\" -0.250, \" the\" +0.250, 80 references, "
      "accuracy 50.0 → 75.0 %\n");
  v1::TuneOffsetRequest request = server_.offset_requests().at(0);
  EXPECT_EQ(request.collection(), "science");
  EXPECT_EQ(request.optimization().method(), v1::METHOD_NONE);
  EXPECT_FALSE(request.keep());
  // Flags that a prior has, too, are the method's then.
  EXPECT_EQ(Run({"refs",     "tune",
                 "--offset", "--method",
                 "ngd",      "--k",
                 "5",        "--critical-layers",
                 "3-4",      "--learning-rate",
                 "0.5",      "--objective",
                 "choices",  "--prompt-positions",
                 "2",        "--patience",
                 "7",        "--max-references",
                 "50",       "--seed",
                 "9"})
                .exit_code,
            0);
  request = server_.offset_requests().at(1);
  EXPECT_EQ(request.collection(), "default");
  EXPECT_EQ(request.max_references(), 50);
  EXPECT_EQ(request.seed(), 9);
  EXPECT_THAT(DescribeOptions(request.optimization()),
              AllOf(HasSubstr("k 5"), HasSubstr("learning_rate 0.5"), HasSubstr("patience 7")));
  EXPECT_EQ(request.optimization().method(), v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  EXPECT_EQ(request.optimization().critical_layers_size(), 2);
  EXPECT_EQ(request.optimization().objective(), v1::OBJECTIVE_CHOICES);
  EXPECT_EQ(request.optimization().prompt_positions(), 2);
  EXPECT_EQ(Run({"refs", "tune", "--offset", "--profile"}).exit_code, 0);
  EXPECT_FALSE(server_.offset_requests().at(2).optimization().has_method());
  EXPECT_THAT(server_.tune_requests(), testing::IsEmpty());
  EXPECT_EQ(Run({"refs", "tune", "--k", "5"}).exit_code, 2);
  EXPECT_EQ(Run({"refs", "tune", "--offset", "--epochs", "5"}).exit_code, 2);
}

TEST_F(EvalCliTest, OffsetsThatMethodsAskForAreFittedFirst) {
  server_.on_score = [](grpc::ServerContext*, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    const bool offset = request.optimization().use_offset();
    response->mutable_optimization()->set_offset_applied(offset);
    for (int i = 0; i < request.continuations_size(); ++i) {
      v1::ContinuationScore& score = *response->add_scores();
      score.set_token_count(1);
      score.set_log_likelihood(request.continuations(i) == " the" ? -2 : -1);
      if (offset) score.set_offset_score(request.continuations(i) == " the" ? 1 : -1);
    }
    return grpc::Status::OK;
  };
  ServeLabelledReferences(&server_);
  ChildResult result = Eval({"--methods", "none,offset,ngd+offset", "--set", "ngd+offset.k=5"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  ASSERT_EQ(server_.offset_requests().size(), 2u);
  const std::vector<v1::TuneOffsetRequest> tuned = server_.offset_requests();
  EXPECT_EQ(tuned[0].collection(), "science");
  EXPECT_EQ(tuned[0].optimization().method(), v1::METHOD_NONE);
  EXPECT_EQ(tuned[1].optimization().method(), v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  EXPECT_EQ(tuned[1].optimization().k(), 5);
  for (const v1::TuneOffsetRequest& request : tuned) {
    EXPECT_TRUE(request.keep());
    EXPECT_FALSE(request.optimization().has_use_offset());
    EXPECT_FALSE(request.optimization().has_collection());
    EXPECT_EQ(request.max_references(), 200);
  }
  std::map<std::string, int> right;
  for (const Json& item : Items("run")) right[item.at("method")] += item.at("correct").get<bool>();
  EXPECT_EQ(right.at("none"), 0);
  EXPECT_EQ(right.at("offset"), 4);
  EXPECT_EQ(right.at("ngd+offset"), 4);
  // Where there can be none, the method is asked without, and that is told.
  const auto eval_into = [&](const std::string& out, const std::string& methods) {
    return Run({"eval", "--task", "science", "--suite", folder_ + "/suite", "--methods", methods, "--out",
                absl::StrCat(folder_, "/", out), "--offset-references", "4"});
  };
  server_.on_tune_offset = [](const v1::TuneOffsetRequest&) {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "it has no labels");
  };
  result = eval_into("other", "none,ngd+offset");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, AllOf(HasSubstr("collection science: method ngd+offset is asked without a label offset"),
                                HasSubstr("warning, 4 answers: science: scored without a label offset")));
  for (const Json& item : Items("other")) EXPECT_FALSE(item.contains("offset_scores"));
  EXPECT_EQ(server_.offset_requests().at(2).max_references(), 10);
  server_.on_tune_offset = [](const v1::TuneOffsetRequest&) {
    return grpc::Status(grpc::StatusCode::INTERNAL, "it is odd");
  };
  result = eval_into("odd", "none,offset");
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.err, HasSubstr("the label offset of method offset, collection science: "));
}

TEST_F(EvalCliTest, RefsAmortizeSendsTheDescentsOptions) {
  const ChildResult result =
      Run({"refs", "amortize", "--collection", "science", "--steps", "20", "--objective", "choices"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "collection science: 200 shifts found, 100 were there already, of 300 references\n");
  EXPECT_EQ(server_.amortize_requests().at(0).optimization().steps(), 20);
  EXPECT_FALSE(server_.amortize_requests().at(0).optimization().has_collection());
}

TEST_F(EvalCliTest, RefsProfileShowSetAndClear) {
  EXPECT_THAT(Run({"refs", "profile", "show", "--collection", "science"}).out,
              AllOf(HasSubstr("k 12"), HasSubstr("layers 25-27"), HasSubstr("amortized shifts  0")));
  EXPECT_EQ(Run({"refs", "profile", "set", "--collection", "science", R"({"k": 5})", "--set", "steps=3"}).exit_code, 0);
  EXPECT_EQ(server_.profile_requests().at(0).profile().k(), 5);
  EXPECT_EQ(server_.profile_requests().at(0).profile().steps(), 3);
  EXPECT_EQ(Run({"refs", "profile", "clear", "--collection", "science"}).exit_code, 0);
  EXPECT_FALSE(server_.profile_requests().at(1).has_profile());
  const ChildResult none = Run({"refs", "profile", "clear", "--collection", "new"});
  EXPECT_EQ(none.exit_code, 5);
  EXPECT_THAT(none.err, HasSubstr("collection new has no profile\n"));
  EXPECT_EQ(Run({"refs", "profile", "clear", "--collection", "new", "--missing-ok"}).exit_code, 0);
  const ChildResult bad = Run({"refs", "profile", "set", "{\"kk\": 5}"});
  EXPECT_EQ(bad.exit_code, 4);
  EXPECT_THAT(bad.err, HasSubstr("profile: "));
  EXPECT_EQ(Run({"refs", "profile", "set"}).exit_code, 2);
}

TEST_F(EvalCliTest, NewFlagsSetTheirFields) {
  EXPECT_EQ(
      Run({"ask", "hi", "--method", "prior", "--no-profile", "--prior", "--validation-neighbors", "4", "--step-scale",
           "0.5", "--exclude", "a", "--exclude", "b", "--gate-min-validation-loss-reduction", "0.1"})
          .exit_code,
      0);
  const v1::OptimizationOptions options = server_.generate_requests().at(0).optimization();
  EXPECT_EQ(options.method(), v1::METHOD_COLLECTION_PRIOR);
  EXPECT_TRUE(options.has_use_profile() && !options.use_profile());
  EXPECT_TRUE(options.use_prior());
  EXPECT_EQ(options.validation_neighbors(), 4);
  EXPECT_EQ(options.step_scale(), 0.5);
  EXPECT_THAT(options.exclude_reference_ids(), ElementsAre("a", "b"));
  EXPECT_EQ(options.gate().min_validation_loss_reduction(), 0.1);
}

TEST_F(EvalCliTest, ExplainShowsTheHeldOutNeighborsAndTheStepTaken) {
  server_.on_generate = [](grpc::ServerContext*, const v1::GenerateRequest&,
                           grpc::ServerWriter<v1::GenerateResponse>* writer) {
    v1::GenerateResponse event;
    v1::OptimizationReport& report = *event.mutable_optimization();
    for (const double loss : {0.8, 0.4, 0.2}) report.add_losses(loss);
    for (const double loss : {0.9, 0.7, 0.75}) report.add_validation_losses(loss);
    report.set_selected_step(1);
    writer->Write(event);
    return grpc::Status::OK;
  };
  const ChildResult result = Run({"ask", "hi", "--explain"});
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("in 2 steps, step 1 taken"), HasSubstr("held-out neighbors' loss 0.9000 → 0.7000")));
}

}  // namespace
}  // namespace c3po
