// c3po calibrate over references that share their choices, against a fake server.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/client/child_process.h"
#include "tests/client/fake_server.h"

namespace c3po {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

// References "q0" to "q39" of the labels " a" and " the" by turns.
void ServeLabelledQuestions(FakeServer* server) {
  server->on_list = [](grpc::ServerContext*, const v1::ListReferencesRequest&, v1::ListReferencesResponse* response) {
    for (int i = 0; i < 40; ++i) {
      v1::Reference& reference = *response->add_references();
      reference.set_id(absl::StrCat("ref-", i));
      reference.mutable_sample()->set_prompt(absl::StrCat("q", i));
      reference.mutable_sample()->set_answer(i % 2 == 0 ? " a" : " the");
      reference.mutable_sample()->add_choices(" a");
      reference.mutable_sample()->add_choices(" the");
    }
    return grpc::Status::OK;
  };
}

// A model that leans to " a" so far that it always says so. Where `knows`, its margins tell the labels apart all the
// same. Optimized, they do, and it leans nowhere.
void ServeLeaningModel(FakeServer* server, bool knows) {
  server->on_score = [knows](grpc::ServerContext*, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    const bool optimized = request.optimization().method() != v1::METHOD_NONE;
    const int question = std::stoi(request.prompt().substr(1));
    const double right = optimized || knows ? 1 : 0;
    for (const std::string& continuation : request.continuations()) {
      v1::ContinuationScore& score = *response->add_scores();
      const bool is_right = (continuation == " a") == (question % 2 == 0);
      // Margins differ in what the question's number says, which is nothing.
      const double noise = 0.01 * (question * 7 % 20) * (continuation == " a" ? 1 : -1);
      score.set_log_likelihood(-5 + (is_right ? right : 0) + noise + (!optimized && continuation == " a" ? 3 : 0));
      score.set_token_count(1);
    }
    return grpc::Status::OK;
  };
}

// Of equal points the first leads, whatever their time.
const std::vector<std::string> kCalibrateLabels = {"calibrate", "--collection",  "labels", "--questions",
                                                   "40",        "--cost-weight", "0"};

class CalibrateLabelsCliTest : public ::testing::Test {
 protected:
  CalibrateLabelsCliTest() : folder_(absl::StrCat(testing::TempDir(), "c3po_calibrate_labels_cli_", getpid())) {
    server_.on_info = [](grpc::ServerContext*, v1::GetServerInfoResponse* info) {
      info->mutable_model()->set_digest("sha256:tiny");
      info->mutable_model()->set_moe_layers(6);
      info->mutable_model()->set_experts(32);
      info->mutable_default_optimization()->set_method(v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
      info->mutable_default_optimization()->set_k(3);
      return grpc::Status::OK;
    };
  }
  ~CalibrateLabelsCliTest() override { std::filesystem::remove_all(folder_); }

  ChildResult Run(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), C3PO_CLI_BINARY);
    return ChildProcess(arguments, "", {{"C3PO_SERVER", server_.address()}, {"C3PO_CACHE_DIR", folder_}}).Wait();
  }

  const std::string folder_;
  FakeServer server_;
};

TEST_F(CalibrateLabelsCliTest, CalibrateSaysThatThereIsNoLiftBeyondTheLabelsOffset) {
  ServeLabelledQuestions(&server_);
  ServeLeaningModel(&server_, /*knows=*/true);
  const ChildResult result = Run(kCalibrateLabels);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("They share 2 choices"), HasSubstr("after offset"),
                                HasSubstr("No lift beyond the labels' offset (labels)"),
                                HasSubstr("accuracy                        50.0 % → 100.0 %   +50.0"),
                                HasSubstr("accuracy after an offset       100.0 % → 100.0 %   0.0"),
                                HasSubstr("the offset alone                50.0 % → 100.0 %   +50.0"),
                                HasSubstr("AUC of the margin                1.000 →   1.000"),
                                HasSubstr("Learned the label offset of the model alone: scale 1.5, "),
                                HasSubstr("80 references, accuracy 50.0 → 75.0 %.\n")));
  ASSERT_EQ(server_.profile_requests().size(), 1);
  const v1::SetProfileRequest stored = server_.profile_requests()[0];
  EXPECT_EQ(stored.profile().method(), v1::METHOD_NONE);
  EXPECT_TRUE(stored.profile().use_offset());
  ASSERT_EQ(server_.offset_requests().size(), 1);
  EXPECT_EQ(server_.offset_requests()[0].collection(), "labels");
  EXPECT_EQ(server_.offset_requests()[0].optimization().method(), v1::METHOD_NONE);
  EXPECT_EQ(server_.offset_requests()[0].max_references(), 200);
  EXPECT_TRUE(server_.generate_requests().empty());  // Nothing is optimized, so nothing off topic can change.
  const Json notes = Json::parse(stored.notes());
  EXPECT_EQ(notes.at("outcome"), "offset");
  EXPECT_THAT(notes.at("text").get<std::string>(), HasSubstr("No lift beyond the labels' offset"));
  EXPECT_EQ(notes.at("after_offset").at("lift").at("value"), 0.0);
  EXPECT_EQ(notes.at("after_offset").at("offset_alone").at("improved"), 10);
  EXPECT_NEAR(notes.at("after_offset").at("auc").at("value").get<double>(), 1.0, 1e-12);
  EXPECT_EQ(notes.at("tried")[0].at("accuracy_after_offset"), 1.0);
  EXPECT_NEAR(notes.at("tried")[0].at("auc").get<double>(), 1.0, 1e-12);
}

TEST_F(CalibrateLabelsCliTest, CalibrateStoresAMethodWithTheOffsetThatIsLearnedAfterIt) {
  ServeLabelledQuestions(&server_);
  ServeLeaningModel(&server_, /*knows=*/false);
  std::vector<std::string> command = kCalibrateLabels;
  command.insert(command.end(), {"--offset-references", "25"});
  const ChildResult result = Run(command);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("C3PO helps beyond the labels' offset (labels)"), HasSubstr("use_offset true")));
  ASSERT_EQ(server_.profile_requests().size(), 1);
  v1::OptimizationOptions profile = server_.profile_requests()[0].profile();
  EXPECT_EQ(profile.method(), v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  EXPECT_EQ(profile.objective(), v1::OBJECTIVE_PAIRS);  // The first that was tried; none is better.
  EXPECT_TRUE(profile.use_offset());
  ASSERT_EQ(server_.offset_requests().size(), 1);
  EXPECT_EQ(server_.offset_requests()[0].max_references(), 25);
  // The profile that is there takes no part in what is not set.
  profile.set_use_offset(false);
  profile.set_use_profile(false);
  EXPECT_EQ(server_.offset_requests()[0].optimization().SerializeAsString(), profile.SerializeAsString());
  // The search fits its offsets itself, to scores without one.
  for (const v1::ScoreRequest& request : server_.score_requests()) EXPECT_FALSE(request.optimization().use_offset());
}

TEST_F(CalibrateLabelsCliTest, CalibrateStoresNoOffsetWhereTheServerLearnsNone) {
  ServeLabelledQuestions(&server_);
  server_.on_tune_offset = [](const v1::TuneOffsetRequest&) {
    return grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "no such call");
  };
  for (const bool knows : {true, false}) {
    ServeLeaningModel(&server_, knows);
    const ChildResult result = Run(kCalibrateLabels);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.out, HasSubstr("This server cannot learn a label offset: the profile is stored without it."));
    const v1::OptimizationOptions profile = server_.profile_requests().back().profile();
    EXPECT_FALSE(profile.use_offset());
    EXPECT_EQ(profile.method(), knows ? v1::METHOD_NONE : v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  }
  // Nor where there are too few references.
  server_.on_tune_offset = [](const v1::TuneOffsetRequest&) {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "fewer than 10 share their labels");
  };
  const ChildResult few = Run(kCalibrateLabels);
  EXPECT_EQ(few.exit_code, 0) << few.err;
  EXPECT_THAT(few.out, HasSubstr("There is no label offset, the profile is stored without it: fewer than 10"));
  // Any other failure is one of the command, and the earlier profile stays.
  server_.on_tune_offset = [](const v1::TuneOffsetRequest&) {
    return grpc::Status(grpc::StatusCode::INTERNAL, "the references were lost");
  };
  const ChildResult failed = Run(kCalibrateLabels);
  EXPECT_EQ(failed.exit_code, 1);
  EXPECT_THAT(failed.err, HasSubstr("the references were lost"));
  EXPECT_EQ(server_.profile_requests().size(), 3);
}

TEST_F(CalibrateLabelsCliTest, CalibratePrintsItsOutcomeAsJson) {
  ServeLabelledQuestions(&server_);
  ServeLeaningModel(&server_, /*knows=*/true);
  std::vector<std::string> command = kCalibrateLabels;
  command.push_back("--json");
  const ChildResult result = Run(command);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const Json document = Json::parse(result.out);  // One document, and nothing else.
  EXPECT_EQ(document.at("collection"), "labels");
  EXPECT_EQ(document.at("outcome"), "offset");
  EXPECT_EQ(document.at("stored"), true);
  EXPECT_EQ(document.at("profile").at("use_offset"), true);
  EXPECT_EQ(document.at("after_offset").at("accuracy_none"), 1.0);
  EXPECT_THAT(result.err, HasSubstr("No lift beyond the labels' offset"));
  command.push_back("--dry-run");
  const Json dry = Json::parse(Run(command).out);
  EXPECT_EQ(dry.at("stored"), false);
  EXPECT_FALSE(dry.contains("profile"));
  EXPECT_EQ(server_.offset_requests().size(), 1);
}

TEST_F(CalibrateLabelsCliTest, CalibrateWithoutAnOffsetJudgesAnswersAsTheyAre) {
  ServeLabelledQuestions(&server_);
  ServeLeaningModel(&server_, /*knows=*/true);
  std::vector<std::string> command = kCalibrateLabels;
  command.push_back("--no-offset");
  const ChildResult result = Run(command);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("accuracy 50.0 % → 100.0 %"), Not(HasSubstr("after offset")),
                                Not(HasSubstr("the labels' offset"))));
  EXPECT_EQ(server_.profile_requests().at(0).profile().method(), v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  EXPECT_FALSE(server_.profile_requests()[0].profile().use_offset());
  EXPECT_TRUE(server_.offset_requests().empty());
}

TEST_F(CalibrateLabelsCliTest, CalibrateInsistsOnNoOffsetWithoutLabels) {
  // Questions with choices of their own.
  server_.on_list = [](grpc::ServerContext*, const v1::ListReferencesRequest&, v1::ListReferencesResponse* response) {
    for (int i = 0; i < 8; ++i) {
      v1::Reference& reference = *response->add_references();
      reference.set_id(absl::StrCat("ref-", i));
      reference.mutable_sample()->set_prompt(absl::StrCat("q", i));
      reference.mutable_sample()->set_answer(absl::StrCat(" ", i));
      reference.mutable_sample()->add_choices(absl::StrCat(" ", i));
      reference.mutable_sample()->add_choices(" no");
    }
    return grpc::Status::OK;
  };
  const ChildResult none = Run({"calibrate", "--collection", "science", "--offset"});
  EXPECT_EQ(none.exit_code, 6);
  EXPECT_THAT(none.err, HasSubstr("--offset: the questions of collection science do not share their choices"));
  EXPECT_TRUE(server_.score_requests().empty());
}

}  // namespace
}  // namespace c3po
