#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/eval/off_topic_check.h"
#include "tests/client/fake_server.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;

TEST(OffTopicCheck, EverydayPromptsAreManyAndDifferent) {
  const std::vector<std::string> prompts = EverydayPrompts();
  EXPECT_GE(prompts.size(), 20u);
  EXPECT_EQ(std::set<std::string>(prompts.begin(), prompts.end()).size(), prompts.size());
  for (const std::string& prompt : prompts) EXPECT_GE(prompt.size(), 10u);
}

// A server that applies a pathway to prompts that begin with "near", and whose answers change where they say "harm".
class OffTopicServer {
 public:
  OffTopicServer() {
    server_.on_generate = [](grpc::ServerContext*, const v1::GenerateRequest& request,
                             grpc::ServerWriter<v1::GenerateResponse>* writer) {
      const bool none = request.optimization().method() == v1::METHOD_NONE;
      const bool near = absl::StartsWith(request.prompt(), "near");
      v1::GenerateResponse event;
      v1::OptimizationReport& report = *event.mutable_optimization();
      report.set_gate(none   ? v1::GATE_DECISION_NOT_REQUESTED
                      : near ? v1::GATE_DECISION_APPLIED
                             : v1::GATE_DECISION_SKIPPED_NEIGHBORS_FAR);
      if (!none) report.set_nearest_distance(near ? 0.5 : 1.5);
      writer->Write(event);
      const bool harmed = !none && near && absl::StrContains(request.prompt(), "harm");
      event.mutable_delta()->set_text(harmed ? "nonsense" : "an answer");
      writer->Write(event);
      event.mutable_summary()->set_finish_reason(v1::FINISH_REASON_STOP);
      writer->Write(event);
      return grpc::Status::OK;
    };
  }
  FakeServer server_;
};

TEST(OffTopicCheck, ComparesOnlyWhatWasAppliedWithTheModelAlone) {
  OffTopicServer fake;
  Client client(InsecureChannel(fake.server_.address()));
  v1::OptimizationOptions settings;
  settings.set_collection("mine");
  settings.set_k(7);
  int told = 0;
  const auto answers = AskOffTopic(client, settings, {"far", "near", "near harm"}, [&] { ++told; }, {});
  ASSERT_TRUE(answers.ok()) << answers.status();
  ASSERT_EQ(answers->size(), 3u);
  EXPECT_EQ(told, 3);
  EXPECT_FALSE((*answers)[0].changed);
  EXPECT_FALSE((*answers)[1].changed);
  EXPECT_TRUE((*answers)[2].changed);
  EXPECT_EQ((*answers)[2].nearest_distance, 0.5);
  const auto requests = fake.server_.generate_requests();
  ASSERT_EQ(requests.size(), 5u);  // The model alone was not asked where the gate left it alone.
  EXPECT_EQ(requests[0].optimization().k(), 7u);
  EXPECT_EQ(requests[0].sampling().max_tokens(), kOffTopicTokens);
  EXPECT_TRUE(requests[0].sampling().has_temperature());
}

TEST(OffTopicCheck, TakesAFewPromptsOfOtherCollectionsOnly) {
  FakeServer server;
  std::vector<std::string> listed;
  server.on_list = [&](grpc::ServerContext*, const v1::ListReferencesRequest& request,
                       v1::ListReferencesResponse* response) {
    listed.push_back(request.collection());
    for (int i = 0; i < 9; ++i) response->add_references()->mutable_sample()->set_prompt(request.collection());
    return grpc::Status::OK;
  };
  Client client(InsecureChannel(server.address()));
  const auto stats = client.GetStats();
  ASSERT_TRUE(stats.ok());
  ASSERT_GE(stats->collections_size(), 1);
  const std::string only = stats->collections(0).collection();
  const auto own = PromptsOfOthers(client, only, 8, 2, {});
  ASSERT_TRUE(own.ok()) << own.status();
  EXPECT_EQ(own->size(), static_cast<size_t>(2 * (stats->collections_size() - 1)));
  const auto others = PromptsOfOthers(client, "mine", 1, 2, {});
  ASSERT_TRUE(others.ok());
  EXPECT_THAT(*others, ElementsAre(only, only));
}

// "tickets2" is a copy of "tickets" with one prompt more.
TEST(OffTopicCheck, PassesOverCopiesOfTheCollectionsOwnPrompts) {
  FakeServer server;
  server.on_list = [](grpc::ServerContext*, const v1::ListReferencesRequest&, v1::ListReferencesResponse* response) {
    for (const char* prompt : {"copy", "new", "copy"}) {
      response->add_references()->mutable_sample()->set_prompt(prompt);
    }
    return grpc::Status::OK;
  };
  server.on_search = [](grpc::ServerContext*, const v1::SearchReferencesRequest& request,
                        v1::SearchReferencesResponse* response) {
    v1::SearchReferencesResponse::Hit& hit = *response->add_hits();
    hit.set_distance(request.text() == "copy" ? 0 : 0.5);
    hit.mutable_reference()->mutable_sample()->set_prompt("copy");
    return grpc::Status::OK;
  };
  Client client(InsecureChannel(server.address()));
  const auto others = PromptsOfOthers(client, "tickets", 1, 3, {});
  ASSERT_TRUE(others.ok()) << others.status();
  EXPECT_THAT(*others, ElementsAre("new"));
  for (const v1::SearchReferencesRequest& search : server.search_requests()) EXPECT_EQ(search.collection(), "tickets");
}

TEST(OffTopicCheck, MeasuresTheCollectionsReferencesWithoutThemselves) {
  FakeServer server;  // lists ref-0 to ref-4
  server.on_search = [](grpc::ServerContext*, const v1::SearchReferencesRequest& request,
                        v1::SearchReferencesResponse* response) {
    v1::SearchReferencesResponse::Hit& itself = *response->add_hits();
    itself.mutable_reference()->set_id(absl::StrCat("ref-", request.text().back() - '0'));
    v1::SearchReferencesResponse::Hit& other = *response->add_hits();
    other.set_distance(0.25);
    other.mutable_reference()->set_id("another");
    return grpc::Status::OK;
  };
  Client client(InsecureChannel(server.address()));
  const auto distances = DistancesWithin(client, "tickets", 3, {});
  ASSERT_TRUE(distances.ok()) << distances.status();
  EXPECT_THAT(*distances, ElementsAre(0.25, 0.25, 0.25));
}

std::vector<OffTopicAnswer> Answers(int unchanged, const std::vector<double>& changed) {
  std::vector<OffTopicAnswer> answers(static_cast<size_t>(unchanged), {"kept", false, 1.4});
  for (const double distance : changed) answers.push_back({"changed", true, distance});
  return answers;
}

TEST(DistanceThatSpares, LeavesAsManyChangedAsAllowed) {
  EXPECT_EQ(DistanceThatSpares(Answers(39, {0.9}), 0.05), std::nullopt);  // 1 of 40, 2 are allowed.
  const auto limit = DistanceThatSpares(Answers(36, {1.1, 0.8, 1.2, 0.9}), 0.05);
  ASSERT_TRUE(limit.has_value());
  EXPECT_LT(*limit, 1.1);
  EXPECT_GT(*limit, 0.9);
  EXPECT_LT(*DistanceThatSpares(Answers(3, {1.0, 0.7}), 0.05), 0.7);  // Of five none is allowed.
}

TEST(DistanceThatSpares, KnowsNoneWhereAChangedAnswerHasNoDistance) {
  std::vector<OffTopicAnswer> answers = Answers(2, {1.0});
  answers.push_back({"changed", true, std::nullopt});
  EXPECT_EQ(DistanceThatSpares(answers, 0.05), std::nullopt);
}

}  // namespace
}  // namespace c3po
