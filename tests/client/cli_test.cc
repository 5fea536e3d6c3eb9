// Runs the built `c3po` against a fake server: which request it makes of its flags, what it prints, how it exits.

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "index/types/optimization_options.h"
#include "tests/client/child_process.h"
#include "tests/client/fake_server.h"

namespace c3po {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using Json = nlohmann::json;

class CliTest : public ::testing::Test {
 protected:
  std::vector<std::string> Arguments(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), C3PO_CLI_BINARY);
    return arguments;
  }

  // The server's address goes in by the environment, as a user's shell profile would have it.
  ChildResult Run(const std::vector<std::string>& arguments, const std::string& input = "") const {
    return ChildProcess(Arguments(arguments), input, {{"C3PO_SERVER", server_.address()}}).Wait();
  }

  static std::vector<Json> JsonLines(const std::string& text) {
    std::vector<Json> documents;
    for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      documents.push_back(Json::parse(line.begin(), line.end()));
    }
    return documents;
  }

  static std::string WriteFile(const std::string& name, const std::string& text) {
    const std::string path = ::testing::TempDir() + name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  template <typename Message>
  static void ExpectEqual(const Message& actual, const std::string& expected_text) {
    Message expected;
    ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(expected_text, &expected));
    EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(actual, expected))
        << actual.DebugString() << "instead of\n"
        << expected.DebugString();
  }

  FakeServer server_;
};

TEST_F(CliTest, AskStreamsTheTextAndNothingElse) {
  const ChildResult result = Run({"ask", "What is it?"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "Hello world\n");
  EXPECT_EQ(result.err, "");
  ExpectEqual(server_.generate_requests().at(0), "prompt: 'What is it?'");
}

TEST_F(CliTest, AskReadsStdinWithoutItsLastNewline) {
  EXPECT_EQ(Run({"ask"}, "line one\nline two\n").exit_code, 0);
  EXPECT_EQ(Run({"ask", "-"}, "dash").exit_code, 0);
  EXPECT_EQ(server_.generate_requests().at(0).prompt(), "line one\nline two");
  EXPECT_EQ(server_.generate_requests().at(1).prompt(), "dash");
}

TEST_F(CliTest, EveryOptionOfTheListHasAFlagThatSetsItsFieldAlone) {
  const auto expect = [&](std::vector<std::string> flags, absl::string_view field, const std::string& value) {
    flags.insert(flags.begin(), {"ask", "hi"});
    const ChildResult result = Run(flags);
    ASSERT_EQ(result.exit_code, 0) << flags[2] << ": " << result.err;
    const bool in_gate = absl::ConsumePrefix(&field, "gate.");
    const std::string text = absl::StrCat(field, ": ", value);
    ExpectEqual(server_.generate_requests().back().optimization(),
                in_gate ? absl::StrCat("gate { ", text, " }") : text);
  };
  const OptimizationSettings settings;
  VisitOptions(settings, [&](const OptimizationOption& option, const auto& value) {
    using Value = std::decay_t<decltype(value)>;
    const std::vector<std::string> spellings = absl::StrSplit(option.flag, ',');
    const std::string& flag = spellings[0];
    if constexpr (std::is_enum_v<Value>) {
      for (const Term<Value>& term : TermsOf<Value>())
        expect({flag, term.flag}, option.name, absl::StrCat(term.number));
    } else if constexpr (std::is_same_v<Value, bool>) {
      expect({flag}, option.name, "true");
      if (spellings.size() > 1) expect({spellings[1].substr(1)}, option.name, "false");
    } else if constexpr (std::is_same_v<Value, MetadataFilter>) {
      expect({flag, R"({"must": [{"key": "a", "equals": "b"}]})"}, option.name, "{ must { key: 'a' equals: 'b' } }");
      expect({flag, "{}"}, option.name, "{}");  // Takes back a profile's.
      const ChildResult wrong = Run({"ask", "hi", flag, R"({"must": [{"wings": 1}]})"});
      EXPECT_NE(wrong.exit_code, 0);
      EXPECT_THAT(wrong.err, AllOf(HasSubstr("--filter"), HasSubstr("wings")));
    } else if constexpr (std::is_same_v<Value, std::string> || std::is_same_v<Value, std::vector<std::string>>) {
      expect({flag, "1,2"}, option.name, "'1,2'");
    } else {
      expect({flag, "1"}, option.name, "1");
    }
  });
}

TEST_F(CliTest, EveryFlagSetsItsFieldAndNoOther) {
  const ChildResult result = Run({"ask",
                                  "hi",
                                  "--method",
                                  "ngd",
                                  "--k",
                                  "12",
                                  "--kernel",
                                  "matern",
                                  "--bandwidth",
                                  "0.5",
                                  "--steps",
                                  "0",
                                  "--learning-rate",
                                  "0.25",
                                  "--critical-layers",
                                  "3,25-27",
                                  "--core-experts",
                                  "0",
                                  "--application",
                                  "shift",
                                  "--collection",
                                  "science",
                                  "--references",
                                  "all",
                                  "--objective",
                                  "choices",
                                  "--prompt-positions",
                                  "9",
                                  "--step-rule",
                                  "adam",
                                  "--alpha",
                                  "0.5",
                                  "--no-gate",
                                  "--gate-max-distance",
                                  "1.5",
                                  "--gate-distance-quantile",
                                  "0.875",
                                  "--preset",
                                  "paper",
                                  "--min-generation",
                                  "4294967296",
                                  "--gate-max-confidence",
                                  "0.75",
                                  "--gate-min-loss-reduction",
                                  "0.125",
                                  "--return-pathways",
                                  "--temperature",
                                  "0",
                                  "--top-k",
                                  "40",
                                  "--top-p",
                                  "0.5",
                                  "--min-p",
                                  "0.25",
                                  "--repetition-penalty",
                                  "1.5",
                                  "--seed",
                                  "18446744073709551615",
                                  "--max-tokens",
                                  "64",
                                  "--stop",
                                  "\n",
                                  "--stop",
                                  "END",
                                  "--logit-bias",
                                  "464=-100",
                                  "--logit-bias",
                                  "7=2.5",
                                  "--logprobs",
                                  "5",
                                  "--ignore-eos",
                                  "--request-id",
                                  "mine"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  ExpectEqual(server_.generate_requests().at(0), R"(
      prompt: 'hi'
      sampling {
        temperature: 0 top_k: 40 top_p: 0.5 min_p: 0.25 repetition_penalty: 1.5 seed: 18446744073709551615
        max_tokens: 64 stop: '\n' stop: 'END' logprobs: 5 ignore_eos: true
        logit_bias { key: 7 value: 2.5 } logit_bias { key: 464 value: -100 }
      }
      optimization {
        method: METHOD_NEIGHBORHOOD_GRADIENT_DESCENT k: 12 kernel: KERNEL_MATERN bandwidth: 0.5 steps: 0
        learning_rate: 0.25 critical_layers: [3, 25, 26, 27] core_experts: 0
        application_rule: APPLICATION_RULE_ROUTER_SHIFT collection: 'science'
        reference_selection: REFERENCE_SELECTION_ALL objective: OBJECTIVE_CHOICES step_rule: STEP_RULE_ADAM alpha: 0.5 prompt_positions: 9
        gate {
          enabled: false max_neighbor_distance: 1.5 max_base_confidence: 0.75 min_loss_reduction: 0.125
          neighbor_distance_quantile: 0.875
        }
        return_pathways: true preset: PRESET_PAPER min_index_generation: 4294967296
      }
      request_id: 'mine')");
}

TEST_F(CliTest, NamedValuesMapToTheirEnums) {
  const std::vector<std::vector<std::string>> cases = {
      {"--method", "none", "method: METHOD_NONE"},
      {"--method", "mode", "method: METHOD_MODE_FINDING"},
      {"--method", "kernel", "method: METHOD_KERNEL_REGRESSION"},
      {"--kernel", "gaussian", "kernel: KERNEL_GAUSSIAN"},
      {"--kernel", "linear", "kernel: KERNEL_LINEAR"},
      {"--kernel", "polynomial", "kernel: KERNEL_POLYNOMIAL"},
      {"--application", "last", "application_rule: APPLICATION_RULE_LAST_PROMPT_TOKEN"},
      {"--application", "every", "application_rule: APPLICATION_RULE_EVERY_NEW_TOKEN"},
      {"--references", "successful", "reference_selection: REFERENCE_SELECTION_SUCCESSFUL"},
      {"--objective", "answer", "objective: OBJECTIVE_ANSWER"},
      {"--step-rule", "gradient", "step_rule: STEP_RULE_GRADIENT"},
      {"--step-rule", "normalized", "step_rule: STEP_RULE_NORMALIZED"},
      {"--epsilon", "0.5", "epsilon: 0.5"},
      {"--critical-layers", "25,26", "critical_layers: [25, 26]"},
  };
  for (const auto& flag : cases) {
    ASSERT_EQ(Run({"ask", "hi", flag[0], flag[1]}).exit_code, 0) << flag[0] << " " << flag[1];
    ExpectEqual(server_.generate_requests().back(), "prompt: 'hi' optimization { " + flag[2] + " }");
  }
}

TEST_F(CliTest, ChatFlagWrapsThePromptAsAUsersMessage) {
  ASSERT_EQ(Run({"ask", "hi", "--chat"}).exit_code, 0);
  ASSERT_EQ(Run({"ask", "hi", "--system", "be brief"}).exit_code, 0);
  ExpectEqual(server_.generate_requests().at(0), "chat { messages { role: 'user' content: 'hi' } }");
  ExpectEqual(server_.generate_requests().at(1), R"(
      chat { messages { role: 'system' content: 'be brief' } messages { role: 'user' content: 'hi' } })");
}

TEST_F(CliTest, ToolsAndDocumentsAreSentAsTheirFilesAre) {
  const std::string tool = absl::StrCat(testing::TempDir(), "/c3po_tool.json");
  std::ofstream(tool) << R"({"type": "function",  "n": 1.50})";
  ASSERT_EQ(Run({"ask", "hi", "--tool", tool, "--tool", tool, "--document", tool}).exit_code, 0);
  ExpectEqual(server_.generate_requests().at(0), R"(
      chat {
        messages { role: 'user' content: 'hi' }
        tools_json: '{"type": "function",  "n": 1.50}'
        tools_json: '{"type": "function",  "n": 1.50}'
        documents_json: '{"type": "function",  "n": 1.50}'
      })");
  const ChildResult missing = Run({"ask", "hi", "--tool", "/nonexistent/tool.json"});
  EXPECT_NE(missing.exit_code, 0);
  EXPECT_THAT(missing.err, HasSubstr("/nonexistent/tool.json"));
}

TEST_F(CliTest, ScoreOfAChatSendsItAsAsk) {
  ASSERT_EQ(Run({"score", "hi", "--continuation", "a", "--system", "be brief"}).exit_code, 0);
  ASSERT_EQ(Run({"score", "hi", "--continuation", "a", "--experts-per-token", "4"}).exit_code, 0);
  ExpectEqual(server_.score_requests().at(0), R"(
      chat { messages { role: 'system' content: 'be brief' } messages { role: 'user' content: 'hi' } }
      continuations: 'a')");
  ExpectEqual(server_.score_requests().at(1), "prompt: 'hi' continuations: 'a' experts_per_token: 4");
  const std::string path = WriteFile("chat.jsonl", R"({"prompt": "1", "answer": " bad", "choices": [" bad", " x"]})");
  ASSERT_EQ(Run({"score", "--file", path, "--chat", "--method", "none"}).exit_code, 0);
  ExpectEqual(server_.score_requests().at(2), R"(
      chat { messages { role: 'user' content: '1' } } continuations: ' bad' continuations: ' x'
      optimization { method: METHOD_NONE })");
}

TEST_F(CliTest, AskShowsTheExpertsThatTokensWereGiven) {
  server_.on_generate = [](grpc::ServerContext*, const v1::GenerateRequest&,
                           grpc::ServerWriter<v1::GenerateResponse>* writer) {
    v1::GenerateResponse event;
    v1::RoutedExperts& prompt = *event.mutable_routed_experts();
    prompt.set_tokens(3);
    prompt.set_layers(2);
    prompt.set_experts(1);
    for (const uint32_t id : {7, 1, 7, 2, 5, 3}) {
      prompt.add_ids(id);
      prompt.add_weights(0.5);
    }
    writer->Write(event);
    event.mutable_delta()->set_text("Yes");
    v1::RoutedExperts& token = *event.mutable_delta()->mutable_routed_experts();
    token.set_first_position(3);
    token.set_tokens(1);
    token.set_layers(2);
    token.set_experts(1);
    token.add_ids(7);
    token.add_ids(3);
    writer->Write(event);
    event.mutable_summary()->set_finish_reason(v1::FINISH_REASON_STOP);
    writer->Write(event);
    return grpc::Status::OK;
  };
  const ChildResult result = Run({"ask", "hi", "--show-experts", "--experts-per-token", "1"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("Yes\n"), HasSubstr("4 tokens"), HasSubstr("7 75%  5 25%"),
                                HasSubstr("3 50%  1 25%  2 25%")));
  ExpectEqual(server_.generate_requests().at(0), "prompt: 'hi' return_routed_experts: true experts_per_token: 1");
  EXPECT_EQ(Run({"ask", "hi"}).out, "Yes\n");
}

TEST_F(CliTest, AskJsonIsOneDocumentPerEventWithTheProtosNames) {
  const ChildResult result = Run({"ask", "hi", "--json", "--method", "ngd"});
  EXPECT_EQ(result.exit_code, 0);
  const std::vector<Json> events = JsonLines(result.out);
  ASSERT_EQ(events.size(), 4);
  const Json& report = events[0].at("optimization");
  EXPECT_EQ(report.at("neighbors").size(), 2);
  EXPECT_EQ(report.at("neighbors")[0].at("kernel_weight"), 0.625);
  EXPECT_LT(report.at("losses").back(), report.at("losses").front());
  EXPECT_EQ(events[1].at("delta").at("text"), "Hello");
  EXPECT_EQ(events[3].at("summary").at("finish_reason"), "FINISH_REASON_STOP");
}

TEST_F(CliTest, AskJsonWithoutOptimizationShowsEmptyLists) {
  const std::vector<Json> events = JsonLines(Run({"ask", "hi", "--json", "--method", "none"}).out);
  ASSERT_EQ(events.size(), 4);
  EXPECT_TRUE(events[0].at("optimization").at("neighbors").empty());
  EXPECT_TRUE(events[0].at("optimization").at("losses").empty());
}

TEST_F(CliTest, AskForSeveralAnswersPutsThemBelowEachOther) {
  server_.on_generate = [](grpc::ServerContext*, const v1::GenerateRequest&,
                           grpc::ServerWriter<v1::GenerateResponse>* writer) {
    v1::GenerateResponse event;
    for (const auto& [answer, text] : {std::pair(0, " One"), std::pair(1, " Two"), std::pair(0, " tree"),
                                       std::pair(2, ""), std::pair(1, " birds")}) {
      event.mutable_delta()->set_answer(static_cast<uint32_t>(answer));
      event.mutable_delta()->set_text(text);
      writer->Write(event);
    }
    event.mutable_summary()->set_finish_reason(v1::FINISH_REASON_STOP);
    writer->Write(event);
    return grpc::Status::OK;
  };
  const ChildResult result = Run({"ask", "hi", "--answers", "3", "--temperature", "0.5"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "[1] One tree\n\n[2] Two birds\n\n[3]\n");
  ExpectEqual(server_.generate_requests().at(0), "prompt: 'hi' sampling { n: 3 temperature: 0.5 }");
  // As one document per event they come as they are.
  const std::vector<Json> events =
      JsonLines(Run({"ask", "hi", "--answers", "3", "--temperature", "0.5", "--json"}).out);
  ASSERT_EQ(events.size(), 6);
  EXPECT_EQ(events[1].at("delta").at("answer"), 1);
  EXPECT_EQ(events[1].at("delta").at("text"), " Two");
}

TEST_F(CliTest, AskWithChoicesSendsThemAndExplainsTheirScores) {
  server_.on_generate = [](grpc::ServerContext*, const v1::GenerateRequest& request,
                           grpc::ServerWriter<v1::GenerateResponse>* writer) {
    v1::GenerateResponse event;
    event.mutable_optimization()->set_gate(v1::GATE_DECISION_SKIPPED_NEIGHBORS_FAR);
    event.mutable_optimization()->set_gate_reason("the nearest reference is at distance 1.2500");
    writer->Write(event);
    event.mutable_delta()->set_text(request.choices(1));
    writer->Write(event);
    v1::GenerationSummary& summary = *event.mutable_summary();
    summary.set_chosen(1);
    for (const double value : {-3.0, -1.0}) {
      summary.add_choice_scores()->set_log_likelihood(value);
      summary.mutable_choice_scores(summary.choice_scores_size() - 1)->set_token_count(2);
    }
    writer->Write(event);
    return grpc::Status::OK;
  };
  const ChildResult plain = Run({"ask", "hi", "--choices", " no", " yes"});
  EXPECT_EQ(plain.exit_code, 0) << plain.err;
  EXPECT_EQ(plain.out, " yes\n");
  ExpectEqual(server_.generate_requests().at(0), "prompt: 'hi' choices: ' no' choices: ' yes'");
  EXPECT_THAT(Run({"ask", "hi", "--choices", " no", " yes", "--explain"}).out,
              AllOf(HasSubstr("skipped neighbors far"), HasSubstr("the nearest reference is at distance 1.2500\n"),
                    HasSubstr("→         -1.0000       2    -0.5000  \" yes\""), HasSubstr("-1.5000  \" no\"")));
}

TEST_F(CliTest, ExplainShowsNeighborsLossesExpertsAndTimes) {
  const ChildResult result = Run({"ask", "hi", "--explain"});
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("neighborhood gradient descent · applied"), HasSubstr("Question: neighbor 0?⏎Answer:"),
                    HasSubstr("0.2500   0.625"), HasSubstr("0.8000 → 0.2000 (-75.0 %) in 2 steps"),
                    HasSubstr("27      13  0.0312  0.0625  +0.0312"), HasSubstr("Hello world\n"),
                    HasSubstr("decode  500.0"), Not(HasSubstr("\x1b"))));
}

TEST_F(CliTest, ChatKeepsTheTurnsAndEndsOnQuit) {
  const ChildResult result = Run({"chat"}, "first\n\nsecond\n/quit\nthird\n");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "Hello world\nHello world\n");
  ASSERT_EQ(server_.generate_requests().size(), 2);
  ExpectEqual(server_.generate_requests().at(1), R"(
      chat {
        messages { role: 'user' content: 'first' }
        messages { role: 'assistant' content: 'Hello world' }
        messages { role: 'user' content: 'second' }
      })");
}

TEST_F(CliTest, AFailedCallPrintsOneLineAndExitsWithItsCode) {
  const ChildResult result = Run({"ask", "hi", "--k", "0"});
  EXPECT_EQ(result.exit_code, 4);
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(result.err, "c3po: INVALID_ARGUMENT: optimization.k: must be at least 1 [reason INVALID_FIELD]\n");
}

TEST_F(CliTest, EachCodeHasItsExitCode) {
  grpc::StatusCode code = grpc::StatusCode::OK;
  server_.on_generate = [&](grpc::ServerContext* context, const v1::GenerateRequest&,
                            grpc::ServerWriter<v1::GenerateResponse>*) {
    // Else RESOURCE_EXHAUSTED and UNAVAILABLE would be tried again, in real time.
    context->AddTrailingMetadata("grpc-retry-pushback-ms", "-1");
    return grpc::Status(code, "because");
  };
  const std::vector<std::pair<grpc::StatusCode, int>> cases = {
      {grpc::StatusCode::UNAVAILABLE, 3},        {grpc::StatusCode::INVALID_ARGUMENT, 4},
      {grpc::StatusCode::NOT_FOUND, 5},          {grpc::StatusCode::FAILED_PRECONDITION, 6},
      {grpc::StatusCode::RESOURCE_EXHAUSTED, 7}, {grpc::StatusCode::DEADLINE_EXCEEDED, 8},
      {grpc::StatusCode::CANCELLED, 9},          {grpc::StatusCode::UNAUTHENTICATED, 10},
      {grpc::StatusCode::PERMISSION_DENIED, 10}, {grpc::StatusCode::INTERNAL, 1},
  };
  for (const auto& [server_code, exit_code] : cases) {
    code = server_code;
    const ChildResult result = Run({"ask", "hi"});
    EXPECT_EQ(result.exit_code, exit_code);
    EXPECT_THAT(result.err, AllOf(StartsWith("c3po: "), HasSubstr(": because\n")));
  }
}

TEST_F(CliTest, UsageErrorsExitWithTwoAndSendNothing) {
  const std::vector<std::vector<std::string>> cases = {
      {},
      {"frobnicate"},
      {"ask", "hi", "--method", "magic"},
      {"ask", "hi", "--k", "-1"},
      {"ask", "hi", "--k", "3", "--epsilon", "0.5"},
      {"ask", "hi", "--steps", "many"},
      {"ask", "hi", "--critical-layers", "29-25"},
      {"ask", "hi", "--critical-layers", "0-4000000000"},
      {"ask", "hi", "--critical-layers", "a"},
      {"ask", "hi", "--timeout", "-1"},
      {"ask", "hi", "--timeout", "nan"},
      {"bench", "--requests", "1", "--warmup", "nan"},
      {"calibrate", "--collection", "science", "--budget-seconds", "nan"},
      {"calibrate", "--collection", "science", "--cost-weight", "nan"},
      {"--server", "127.0.0.1:99999", "ask", "hi"},
      {"--server", "", "ask", "hi"},
      {"refs"},
      {"refs", "import", "/nonexistent.jsonl"},
      {"refs", "import", "-", "--collection", ""},
      {"refs", "export", "-", "--collection", ""},
      {"refs", "profile", "set", "--set", "k=3", "--collection", ""},
      {"refs", "amortize", "--collection", ""},
      {"calibrate", "--collection", ""},
      {"refs", "delete"},
      {"refs", "delete", "--collection", "science"},
      {"score", "hi"},
      {"score"},
      {"tokenize"},
  };
  for (const auto& arguments : cases) {
    const ChildResult result = Run(arguments);
    EXPECT_EQ(result.exit_code, 2) << Json(arguments) << result.err;
    EXPECT_NE(result.err, "") << Json(arguments);
  }
  EXPECT_TRUE(server_.generate_requests().empty());
  EXPECT_TRUE(server_.delete_requests().empty());
  EXPECT_TRUE(server_.add_requests().empty());
  EXPECT_TRUE(server_.profile_requests().empty());
}

TEST_F(CliTest, ConnectionFlagsAreNamedWithWhatIsWrong) {
  EXPECT_THAT(Run({"ask", "hi", "--timeout", "inf"}).err, HasSubstr("\"inf\" is not a finite number at least 0"));
  // gRPC would take the port modulo 65536 and call another server.
  EXPECT_EQ(Run({"--server", "127.0.0.1:65536", "info"}).err,
            "c3po: --server: \"127.0.0.1:65536\" is not ADDRESS:PORT with a port of 0 to 65535\n");
  // gRPC would go to port 443.
  EXPECT_EQ(Run({"--server", "c3po.example.org", "info"}).err,
            "c3po: --server: \"c3po.example.org\" is not ADDRESS:PORT with a port of 0 to 65535\n");
  EXPECT_THAT(Run({"--server", absl::StrCat("http://", server_.address()), "info"}).err, HasSubstr("without http://"));
  EXPECT_THAT(Run({"--token-file", "/nonexistent", "info"}).err,
              HasSubstr("--token-file: /nonexistent: cannot be read"));
}

TEST_F(CliTest, ATokenIsNotSentInPlaintextToAnotherMachine) {
  const auto run = [](std::vector<std::string> arguments, const char* more, const char* value) {
    arguments.insert(arguments.begin(), C3PO_CLI_BINARY);
    return ChildProcess(arguments, "", {{"C3PO_TOKEN", "secret"}, {more, value}}).Wait();
  };
  const std::vector<std::string> info = {"--server", "192.0.2.1:1", "--timeout", "0.2", "info"};
  const ChildResult refused = run(info, "C3PO_UNUSED", "");
  EXPECT_EQ(refused.exit_code, 2) << refused.err;
  EXPECT_THAT(refused.err, HasSubstr("--server: 192.0.2.1:1 is another machine"));
  EXPECT_THAT(refused.err, HasSubstr("--insecure-token"));
  EXPECT_EQ(refused.err.find("secret"), std::string::npos);
  // Asked for, it is sent: the call is made, and finds nobody.
  EXPECT_THAT(run(info, "C3PO_INSECURE_TOKEN", "true").exit_code, ::testing::AnyOf(3, 8));
  EXPECT_EQ(run({"--server", server_.address(), "info"}, "C3PO_UNUSED", "").exit_code, 0) << "of this machine";
}

TEST_F(CliTest, AMisspelledVariableIsToldWithTheNearestNameAndOthersAreNot) {
  const auto info = [&](const std::string& name) {
    return ChildProcess(Arguments({"--server", server_.address(), "info"}), "", {{name, "value"}}).Wait();
  };
  for (const auto& [wrong, right] :
       std::map<std::string, std::string>{{"C3PO_TOKENS", "C3PO_TOKEN"},
                                          {"C3PO_SEVER", "C3PO_SERVER"},
                                          {"C3PO_TLS_CAS", "C3PO_TLS_CA"},
                                          {"C3PO_INSECURE_TOKENS", "C3PO_INSECURE_TOKEN"}}) {
    const ChildResult result = info(wrong);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.err, HasSubstr(absl::StrCat("c3po: warning: ", wrong,
                                                   " is set, and nothing reads it here; did you mean ", right, "?\n")));
  }
  for (const char* other :
       {"C3PO_STORE", "C3PO_AUTH_TOKENS", "C3PO_MODEL", "C3PO_CACHE_DIR", "C3PO_SERVER_SERVICE_HOST"}) {
    EXPECT_THAT(info(other).err, Not(HasSubstr(other))) << "of the server, read, or of Kubernetes";
  }
}

TEST_F(CliTest, AskTellsThatTheChoicesTookThePrompt) {
  const ChildResult result = Run({"ask", "--choices", " no", " yes", "Question: why?"});
  EXPECT_EQ(result.exit_code, 4);
  EXPECT_THAT(result.err, HasSubstr("--choices takes every text behind it"));
  EXPECT_TRUE(server_.generate_requests().empty());
  EXPECT_EQ(Run({"ask", "--choices", " no", " yes"}, "from stdin").exit_code, 0);
}

TEST_F(CliTest, WhatIsUnknownIsNamedBesideTheNearestThatIsKnown) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"calibate"}, "c3po: unknown command calibate; did you mean calibrate?\n"},
      {{"nosuch"}, "c3po: unknown command nosuch\nCommands: ask, chat, refs, "},
      {{"refs", "improt"}, "c3po: unknown command improt of refs; did you mean import?\n"},
      {{"refs", "nosuch"}, "c3po: unknown command nosuch of refs\nCommands of refs: import, export, "},
      {{"ask", "hi", "--colection", "x"}, "c3po: unknown flag --colection; did you mean --collection?\n"},
      {{"ask", "hi", "--sever=x"}, "c3po: unknown flag --sever; did you mean --server?\n"},
  };
  for (const auto& [arguments, words] : cases) {
    const ChildResult result = Run(arguments);
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_THAT(result.err, StartsWith(words));
  }
  EXPECT_THAT(Run({}).err, HasSubstr("subcommand is required"));
}

TEST_F(CliTest, HelpAndVersionExitWithZero) {
  const ChildResult help = Run({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, AllOf(HasSubstr("ask"), HasSubstr("refs"), HasSubstr("Exit codes: 0 ok")));
  EXPECT_EQ(Run({"ask", "--help"}).exit_code, 0);
  EXPECT_EQ(Run({"--version"}).exit_code, 0);
}

TEST_F(CliTest, GlobalFlagsWorkBeforeAndAfterTheCommand) {
  for (const auto& arguments : {std::vector<std::string>{"--server", server_.address(), "--timeout", "20", "ask", "hi"},
                                std::vector<std::string>{"ask", "hi", "--server", server_.address()}}) {
    EXPECT_EQ(ChildProcess(Arguments(arguments)).Wait().out, "Hello world\n");
  }
}

TEST_F(CliTest, AServerOnThisMachineIsNotLookedForBehindAProxy) {
  const ChildResult result = ChildProcess(Arguments({"ask", "hi", "--server", server_.address()}), "",
                                          {{"http_proxy", "http://127.0.0.1:1"}, {"no_proxy", ""}})
                                 .Wait();
  EXPECT_EQ(result.out, "Hello world\n") << result.err;
}

TEST_F(CliTest, APromptThatIsACommandsNameIsAPrompt) {
  ASSERT_EQ(Run({"ask", "info"}).out, "Hello world\n");
  EXPECT_EQ(server_.generate_requests().at(0).prompt(), "info");
}

TEST_F(CliTest, APromptThatIsNotUtf8IsRefusedByName) {
  const ChildResult result = Run({"ask"}, "\xff\xfe");
  EXPECT_EQ(result.exit_code, 4);
  EXPECT_EQ(result.err, "c3po: INVALID_ARGUMENT: prompt: not valid UTF-8\n");
}

TEST_F(CliTest, NoServerIsUnavailable) {
  const ChildResult result = ChildProcess(Arguments({"--server", "127.0.0.1:1", "info"})).Wait();
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, AllOf(StartsWith("c3po: UNAVAILABLE: "), HasSubstr("(after 4 attempts)")));
}

TEST_F(CliTest, TheTimeoutEndsACallThatHangs) {
  server_.on_generate = [](grpc::ServerContext* context, const v1::GenerateRequest&,
                           grpc::ServerWriter<v1::GenerateResponse>*) {
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    return grpc::Status::CANCELLED;
  };
  EXPECT_EQ(Run({"ask", "hi", "--timeout", "0.2"}).exit_code, 8);
}

TEST_F(CliTest, AnInterruptCancelsTheCallAndEndsTheLine) {
  absl::Notification cancelled;
  server_.on_generate = [&](grpc::ServerContext* context, const v1::GenerateRequest&,
                            grpc::ServerWriter<v1::GenerateResponse>* writer) {
    v1::GenerateResponse event;
    event.mutable_delta()->set_text("Begin");
    writer->Write(event);
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    cancelled.Notify();
    return grpc::Status::CANCELLED;
  };
  ChildProcess child(Arguments({"ask", "hi", "--server", server_.address()}));
  while (child.OutputSoFar().empty()) absl::SleepFor(absl::Milliseconds(5));
  child.Signal(SIGINT);
  const ChildResult result = child.Wait();
  EXPECT_EQ(result.exit_code, 9);
  EXPECT_EQ(result.out, "Begin\n");
  EXPECT_THAT(result.err, StartsWith("c3po: CANCELLED"));
  EXPECT_TRUE(cancelled.WaitForNotificationWithTimeout(absl::Seconds(60)));
}

constexpr char kSamples[] =
    R"({"prompt": "one", "answer": " yes", "choices": [" yes", " no"], "metadata": {"source": "test", "rank": 3}})"
    "\n"
    "not json\n"
    "\n"
    R"({"prompt": "wrong", "answer": " no"})"
    "\n"
    R"({"prompt": "two"})"
    "\n"
    R"(["prompt"])"
    "\n"
    R"({"prompt": "bad", "answer": "x"})"
    "\n"
    "{\"prompt\": \"\xff\", \"answer\": \"x\"}\n"
    R"({"prompt": "duplicate", "answer": "x"})"
    "\n"
    R"({"prompt": "two", "answer": "x", "choices": [1]})";

TEST_F(CliTest, ImportReportsMalformedLinesByNumberAndGoesOn) {
  const std::string path = WriteFile("samples.jsonl", kSamples);
  const ChildResult result = Run({"refs", "import", path, "--collection", "science"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, StartsWith("collection science: 2 added; the model already answers 1; 1 there already; "
                                     "6 malformed ("));
  EXPECT_THAT(result.err,
              AllOf(HasSubstr(path + ":2: not JSON: "), HasSubstr(path + ":5: \"answer\" is missing"),
                    HasSubstr(path + ":6: not a JSON object"),
                    HasSubstr(path + ":7: prompt: longer than the context window"), HasSubstr(path + ":8: not JSON: "),
                    HasSubstr(path + ":10: \"choices\" holds something that is not a text")));
  const auto requests = server_.add_requests();
  ASSERT_EQ(requests.size(), 4);
  ExpectEqual(requests[0], R"(
      collection: 'science' sequence: 1
      sample {
        prompt: 'one' answer: ' yes' choices: ' yes' choices: ' no'
        metadata { key: 'source' value: 'test' } metadata { key: 'rank' value: '3' }
      })");
  EXPECT_EQ(requests[3].sequence(), 9);
}

TEST_F(CliTest, ImportStrictFailsOnMalformedLinesAfterImportingTheOthers) {
  const std::string path = WriteFile("strict.jsonl", kSamples);
  const ChildResult result = Run({"refs", "import", path, "--strict"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("strict.jsonl: 6 malformed lines (--strict)\n"));
  EXPECT_EQ(server_.add_requests().size(), 4);
  EXPECT_EQ(server_.add_requests().at(0).collection(), "default");
}

TEST_F(CliTest, ImportStopsAtItsLimitAndPrintsJson) {
  const std::string path = WriteFile("limit.jsonl", kSamples);
  const ChildResult result = Run({"refs", "import", path, "--limit", "2", "--json"});
  EXPECT_EQ(result.exit_code, 0);
  const Json summary = JsonLines(result.out).at(0);
  EXPECT_EQ(summary.at("collection"), "default");
  EXPECT_EQ(summary.at("successful"), 1);
  EXPECT_EQ(summary.at("failed"), 1);
  EXPECT_EQ(summary.at("added"), 2);
  EXPECT_EQ(summary.at("malformed"), 1);
  EXPECT_EQ(server_.add_requests().size(), 2);
}

TEST_F(CliTest, ImportNamesEachFieldThatItDoesNotReadOnce) {
  const ChildResult result = Run({"refs", "import", "-"},
                                 "{\"prompt\": \"p\", \"answer\": \"a\", \"id\": 1}\n"
                                 "{\"prompt\": \"q\", \"answer\": \"a\", \"topic\": 1, \"choises\": [\"a\", \"b\"]}\n"
                                 "{\"prompt\": \"r\", \"answer\": \"a\", \"topic\": 2}\n");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(server_.add_requests().size(), 3);
  EXPECT_THAT(result.err, AllOf(HasSubstr("-:2: warning: \"choises\" is no field of a sample"),
                                HasSubstr("-:2: warning: \"topic\" is no field of a sample"), Not(HasSubstr("-:3:")),
                                Not(HasSubstr("\"id\""))));
}

TEST_F(CliTest, ImportTellsSoManyFieldsAndNoMore) {
  std::string line = "{\"prompt\": \"p\", \"answer\": \"a\"";
  for (int i = 0; i < 50; ++i) line += ", \"field" + std::to_string(i) + "\": 1";
  const ChildResult result = Run({"refs", "import", "-"}, line + "}\n");
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 21);
  EXPECT_THAT(result.err, HasSubstr("further such fields are not told\n"));
}

TEST_F(CliTest, ImportReadsStdin) {
  EXPECT_EQ(Run({"refs", "import", "-"}, "{\"prompt\": \"p\", \"answer\": \"a\"}\n").exit_code, 0);
  EXPECT_EQ(server_.add_requests().size(), 1);
}

TEST_F(CliTest, AnImportSaysThatCalibratingComesNext) {
  const std::string sample = "{\"prompt\": \"p\", \"answer\": \"a\"}\n";
  EXPECT_THAT(Run({"refs", "import", "-", "--collection", "new"}, sample).out,
              AllOf(HasSubstr("\nNext, find the settings"), HasSubstr("\n  c3po calibrate --collection new\n")));
  EXPECT_THAT(Run({"refs", "import", "-", "--collection", "two words"}, sample).out,
              AllOf(HasSubstr("was calibrated before"), HasSubstr("\n  c3po calibrate --collection 'two words'\n")));
  const std::string known = "{\"prompt\": \"duplicate\", \"answer\": \"a\"}\n";
  EXPECT_THAT(Run({"refs", "import", "-"}, known).out, Not(HasSubstr("calibrate")));
  EXPECT_EQ(JsonLines(Run({"refs", "import", "-", "--json"}, sample).out).size(), 1);
}

TEST_F(CliTest, AnImportThatAddsNothingFailsUnlessAllIsThereAlready) {
  const ChildResult empty = Run({"refs", "import", "-"}, "\n\n");
  EXPECT_EQ(empty.exit_code, 4);
  EXPECT_THAT(empty.err, HasSubstr("-: holds no sample\n"));
  const ChildResult malformed =
      Run({"refs", "import", "-"}, "{\"text\": \"a\"}\n{\"prompt\": \"bad\", \"answer\": \"a\"}\n");
  EXPECT_EQ(malformed.exit_code, 4);
  EXPECT_THAT(malformed.out, HasSubstr("collection default: 0 added; 2 malformed ("));
  EXPECT_THAT(malformed.err, HasSubstr("-: no sample was added, 2 lines are malformed\n"));
  EXPECT_EQ(Run({"refs", "import", "-"}, "{\"prompt\": \"duplicate\", \"answer\": \"a\"}\n").exit_code, 0);
}

TEST_F(CliTest, AnImportTellsContradictionsAndReplacesThemWhereAsked) {
  const std::string sample = "{\"prompt\": \"relabelled\", \"answer\": \"a\", \"reference_id\": \"q-17\", \"id\": 3}\n";
  const ChildResult told = Run({"refs", "import", "-"}, sample);
  EXPECT_EQ(told.exit_code, 0);
  EXPECT_THAT(told.err, HasSubstr("-:1: warning: the same prompt has another answer in old; --replace lets"));
  EXPECT_THAT(told.out, HasSubstr("1 contradict other references"));
  const ChildResult replaced = Run({"refs", "import", "-", "--replace"}, sample);
  EXPECT_EQ(replaced.err, "");
  EXPECT_THAT(replaced.out, HasSubstr("1 added; the model already answers 1; 1 replaced; 0 malformed"));
  ExpectEqual(server_.add_requests().at(0),
              "collection: 'default' sequence: 1 sample { prompt: 'relabelled' answer: 'a' id: 'q-17' }");
  EXPECT_TRUE(server_.add_requests().at(1).replace());
}

TEST_F(CliTest, AnImportTellsOfChoicesTokenizedOtherwise) {
  std::string samples;
  for (int i = 0; i < 12; ++i) samples += "{\"prompt\": \"bare\", \"answer\": \"a\"}\n";
  const ChildResult result = Run({"refs", "import", "-"}, samples);
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.err, AllOf(HasSubstr("-:10: warning: choices begin"),
                                HasSubstr("further such lines are only counted\n"), Not(HasSubstr("-:11:"))));
  EXPECT_THAT(result.out, HasSubstr("12 have choices tokenized otherwise"));
}

TEST_F(CliTest, ExportWritesWhatImportReads) {
  v1::ReferenceSample plain, full;
  plain.set_prompt("one\n\"two\"");
  plain.set_answer(" größe");
  full.set_prompt("prompt");
  full.set_answer(" yes");
  full.add_choices(" yes");
  full.add_choices(" no");
  full.set_id("q-17");
  (*full.mutable_metadata())["rank"] = "3";
  (*full.mutable_metadata())["source"] = "test";
  server_.on_list = [&](grpc::ServerContext*, const v1::ListReferencesRequest& request,
                        v1::ListReferencesResponse* response) {
    if (request.collection() != "science") return grpc::Status::OK;
    *response->add_references()->mutable_sample() = request.page_token().empty() ? plain : full;
    if (request.page_token().empty()) response->set_next_page_token("next");
    return grpc::Status::OK;
  };
  const ChildResult exported = Run({"refs", "export", "--collection", "science"});
  EXPECT_EQ(exported.exit_code, 0) << exported.err;
  EXPECT_EQ(JsonLines(exported.out).at(1).at("reference_id"), "q-17");
  EXPECT_EQ(Run({"refs", "import", "-"}, exported.out).exit_code, 0);
  const auto requests = server_.add_requests();
  ASSERT_EQ(requests.size(), 2);
  ExpectEqual(requests[0].sample(), plain.DebugString());
  ExpectEqual(requests[1].sample(), full.DebugString());

  const std::string path = ::testing::TempDir() + "exported.jsonl";
  EXPECT_THAT(Run({"refs", "export", path, "--collection", "science"}).out,
              HasSubstr("2 references of collection science"));
  std::ifstream file(path);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), exported.out);
  EXPECT_EQ(Run({"refs", "export", "--collection", "nobody"}).exit_code, 5);
  EXPECT_EQ(Run({"refs", "export", "/nonexistent/file"}).exit_code, 5);
}

TEST_F(CliTest, AnExportThatFailsLeavesTheFileThatIsThere) {
  server_.on_list = [&](grpc::ServerContext*, const v1::ListReferencesRequest& request,
                        v1::ListReferencesResponse* response) {
    if (request.collection() != "science") return grpc::Status::OK;
    if (!request.page_token().empty()) return grpc::Status(grpc::StatusCode::INTERNAL, "a defect");
    response->add_references()->mutable_sample()->set_prompt("new");
    response->set_next_page_token("next");
    return grpc::Status::OK;
  };
  const std::string path = WriteFile("exported.jsonl", "earlier\n");
  for (const auto& [collection, code] : std::map<std::string, int>{{"nobody", 5}, {"science", 1}}) {
    EXPECT_EQ(Run({"refs", "export", path, "--collection", collection}).exit_code, code);
    std::ifstream file(path);
    EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), "earlier\n");
    EXPECT_FALSE(std::ifstream(path + ".part").good());
  }
  // What is no file of its own is written to, not replaced.
  server_.on_list = nullptr;
  EXPECT_EQ(Run({"refs", "export", "/dev/null", "--collection", "science"}).exit_code, 0);
  EXPECT_FALSE(std::filesystem::is_regular_file("/dev/null"));
}

TEST_F(CliTest, AnImportThatBreaksTellsWhatWasAcknowledgedAndFails) {
  server_.on_add = [](grpc::ServerContext*, FakeServer::ImportStream* stream) {
    v1::AddReferencesRequest request;
    stream->Read(&request);
    v1::AddReferencesResponse response;
    response.add_verdicts()->set_sequence(request.sequence());
    response.mutable_verdicts(0)->set_verdict(v1::VERDICT_SUCCESSFUL);
    stream->Write(response);
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the disk is full");
  };
  const ChildResult result = Run({"refs", "import", WriteFile("broken.jsonl", kSamples)});
  EXPECT_EQ(result.exit_code, 7);
  EXPECT_THAT(result.out, HasSubstr("1 added; the model already answers 1; "));
  EXPECT_THAT(result.err, HasSubstr("c3po: RESOURCE_EXHAUSTED: the disk is full\n"));
}

TEST_F(CliTest, RefsListWalksItsPages) {
  const std::vector<Json> all = JsonLines(Run({"refs", "list", "--page-size", "2", "--json"}).out);
  ASSERT_EQ(all.size(), 5);
  EXPECT_EQ(all[4].at("id"), "ref-4");
  EXPECT_EQ(JsonLines(Run({"refs", "list", "--page-size", "2", "--limit", "3", "--json"}).out).size(), 3);
  EXPECT_THAT(Run({"refs", "list"}).out, AllOf(HasSubstr("id "), HasSubstr("ref-0")));
}

TEST_F(CliTest, RefsSearchGetAndStats) {
  EXPECT_THAT(Run({"refs", "search", "near", "--collection", "science", "--k", "5", "--successful-only"}).out,
              AllOf(HasSubstr("0.5000"), HasSubstr("Question: near?")));
  ExpectEqual(server_.search_requests().at(0), "collection: 'science' text: 'near' k: 5 successful_only: true");
  EXPECT_EQ(Run({"refs", "search", "near", "--filter", R"({"should": [{"key": "a", "exists": true}]})"}).exit_code, 0);
  ExpectEqual(server_.search_requests().at(1),
              "collection: 'default' text: 'near' filter { should { key: 'a' exists: true } }");
  EXPECT_THAT(Run({"refs", "search", "near", "--filter", "must"}).err, HasSubstr("filter: is no filter as JSON"));
  EXPECT_THAT(Run({"refs", "get", "ref-0"}).out, HasSubstr("Question: near?"));
  const ChildResult missing = Run({"refs", "get", "nobody"});
  EXPECT_EQ(missing.exit_code, 5);
  EXPECT_EQ(missing.err, "c3po: NOT_FOUND: id: no reference nobody\n");
  EXPECT_THAT(Run({"refs", "stats"}).out, HasSubstr("science            300         180     300"));
  server_.stats_have_a_second_page = true;
  EXPECT_THAT(Run({"refs", "stats"}).out,
              AllOf(HasSubstr("science"), HasSubstr("without-references"), HasSubstr("yes")));
  EXPECT_EQ(JsonLines(Run({"refs", "stats", "--json"}).out).at(0).at("collections").size(), 2);
  server_.stats_have_a_second_page = false;
  EXPECT_EQ(JsonLines(Run({"refs", "stats", "--json"}).out).at(0).at("collections")[0].at("collection"), "science");
}

TEST_F(CliTest, RefsDeleteTakesIdsOrAConfirmedCollection) {
  EXPECT_EQ(Run({"refs", "delete", "a", "b"}).out, "deleted 2\n");
  EXPECT_EQ(Run({"refs", "delete", "--collection", "science", "--yes"}).exit_code, 0);
  ExpectEqual(server_.delete_requests().at(0), "ids: 'a' ids: 'b'");
  ExpectEqual(server_.delete_requests().at(1), "collection: 'science'");
}

TEST_F(CliTest, RefsDeleteFailsForWhatIsNotThere) {
  const ChildResult ids = Run({"refs", "delete", "a", "gone"});
  EXPECT_EQ(ids.exit_code, 5);
  EXPECT_EQ(ids.out, "deleted 1\n");
  EXPECT_THAT(ids.err, HasSubstr("1 of the ids was not there: gone\n"));
  const ChildResult collection = Run({"refs", "delete", "--collection", "nobody", "--yes"});
  EXPECT_EQ(collection.exit_code, 5);
  EXPECT_THAT(collection.err, HasSubstr("collection nobody had no references\n"));
  EXPECT_EQ(Run({"refs", "delete", "gone", "--missing-ok"}).exit_code, 0);
}

TEST_F(CliTest, TuningShowsNoTrainingLossBeforeItTrained) {
  const ChildResult result = Run({"refs", "tune"});
  EXPECT_THAT(result.out, AllOf(HasSubstr("    0              -         0.8750"), HasSubstr("    1         0.6250")));
}

TEST_F(CliTest, ScoreMarksTheLikeliestChoice) {
  const ChildResult result = Run({"score", "Review: fine\nSentiment:", "--choices", " negative", " bad", "--k", "3"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("\" negative\""), HasSubstr("→         -1.0000")));
  ExpectEqual(server_.score_requests().at(0), R"(
      prompt: 'Review: fine\nSentiment:' continuations: ' negative' continuations: ' bad' optimization { k: 3 })");
}

TEST_F(CliTest, ScorePrintsContinuationsAndJson) {
  const ChildResult result = Run({"score", "--continuation", "e", "--continuation", "x", "the prompt", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json response = JsonLines(result.out).at(0);
  EXPECT_EQ(response.at("scores")[0].at("log_likelihood"), -2.0);
  EXPECT_EQ(response.at("scores")[1].at("log_likelihood"), -1.0);
  EXPECT_EQ(server_.score_requests().at(0).prompt(), "the prompt");
}

TEST_F(CliTest, ScoreFilePrintsAccuracy) {
  // The fake prefers the continuation with fewer letters "e".
  const std::string path =
      WriteFile("heldout.jsonl", R"({"prompt": "1", "answer": " bad", "choices": [" negative", " bad"]})"
                                 "\n"
                                 R"({"prompt": "2", "answer": " negative", "choices": [" negative", " bad"]})"
                                 "\nbroken\n"
                                 R"({"prompt": "3", "answer": " yes"})"
                                 "\n"
                                 R"({"prompt": "4", "answer": " no"})");
  const ChildResult result = Run({"score", "--file", path, "--method", "ngd"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "2 of 4 correct (50.0 % [15.0, 85.0]), 1 malformed\n");  // Wilson's interval
  EXPECT_THAT(result.err, HasSubstr(path + ":3: not JSON"));
  const auto requests = server_.score_requests();
  ASSERT_EQ(requests.size(), 4);
  ExpectEqual(requests[0], R"(prompt: '1' continuations: ' negative' continuations: ' bad'
                              optimization { method: METHOD_NEIGHBORHOOD_GRADIENT_DESCENT })");

  const std::vector<Json> items = JsonLines(Run({"score", "--file", path, "--json"}).out);
  ASSERT_EQ(items.size(), 5);
  EXPECT_EQ(items[0].at("line"), 1);
  EXPECT_EQ(items[0].at("correct"), true);
  EXPECT_EQ(items[1].at("predicted"), " bad");
  EXPECT_EQ(items[1].at("answer"), " negative");
  EXPECT_EQ(items[0].at("response").at("scores").size(), 2);
  EXPECT_EQ(items[4].at("summary").at("accuracy"), 0.5);
}

TEST_F(CliTest, ScoreFileTellsTheServersWarnings) {
  server_.on_score = [](grpc::ServerContext*, const v1::ScoreRequest&, v1::ScoreResponse* response) {
    response->add_scores()->set_token_count(1);
    response->mutable_optimization()->add_warnings("continuations begin without white space");
    return grpc::Status::OK;
  };
  std::string lines;
  for (int i = 0; i < 12; ++i) lines += "{\"prompt\": \"1\", \"answer\": \"x\"}\n";
  const std::string path = WriteFile("warned.jsonl", lines);
  const ChildResult result = Run({"score", "--file", path});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.err, AllOf(HasSubstr(path + ":10: warning: continuations begin without white space\n"),
                                HasSubstr("and 2 warnings more\n"), Not(HasSubstr(":11: warning"))));
}

// A server of another version, or another's: what it gives is not trusted to be a number.
TEST_F(CliTest, ScoreCountsNothingThatIsNotANumber) {
  server_.on_score = [](grpc::ServerContext*, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    for (int i = 0; i < request.continuations_size(); ++i) {
      v1::ContinuationScore& score = *response->add_scores();
      score.set_log_likelihood(request.prompt() == "2" ? std::nan("") : -1 - i);
      score.set_token_count(1);
    }
    return grpc::Status::OK;
  };
  std::string lines;
  for (const char* prompt : {"1", "2", "3"}) {
    absl::StrAppend(&lines, R"({"prompt": ")", prompt, R"(", "answer": " a", "choices": [" a", " b"]})", "\n");
  }
  const std::string path = WriteFile("heldout.jsonl", lines);
  const ChildResult result = Run({"score", "--file", path, "--method", "none"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.out, HasSubstr("2 of 2 correct (100.0 % [34.2, 100.0])"));
  EXPECT_THAT(result.err, AllOf(HasSubstr(path + ":2: the server gave a log-likelihood of nan"),
                                HasSubstr("1 sample failed and count nowhere")));
  EXPECT_EQ(Run({"score", "2", "--choices", " a", " b"}).exit_code, 1);
}

TEST_F(CliTest, ScoreFileLeavesOutWhatIsAmongTheReferences) {
  // The fake knows "near" by its text and "at zero" by its distance.
  server_.on_search = [](grpc::ServerContext*, const v1::SearchReferencesRequest& request,
                         v1::SearchReferencesResponse* response) {
    auto& hit = *response->add_hits();
    hit.set_distance(request.text() == "at zero" ? 0 : 0.5);
    hit.mutable_reference()->mutable_sample()->set_prompt("near\n");
    return grpc::Status::OK;
  };
  std::string lines;
  for (const char* prompt : {"new", "near", "at zero"}) {
    absl::StrAppend(&lines, R"({"prompt": ")", prompt, R"(", "answer": " a", "choices": [" a", " e"]})", "\n");
  }
  const std::string path = WriteFile("heldout.jsonl", lines);
  const ChildResult result = Run({"score", "--file", path, "--method", "ngd", "--collection", "science"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("1 of 1 correct"));
  EXPECT_THAT(result.err, HasSubstr("2 samples are among the references of science and were left out"));
  EXPECT_EQ(server_.search_requests().at(0).collection(), "science");
  const std::vector<Json> asked = JsonLines(Run({"score", "--file", path, "--include-references", "--json"}).out);
  EXPECT_EQ(asked.back().at("summary").at("items"), 3);
  EXPECT_EQ(asked.back().at("summary").at("among_references"), 2);
  // The model alone reads no references.
  const size_t searches = server_.search_requests().size();
  EXPECT_THAT(Run({"score", "--file", path, "--method", "none"}).out, HasSubstr("3 of 3 correct"));
  EXPECT_EQ(server_.search_requests().size(), searches);
}

TEST_F(CliTest, ScoreFileTellsWhatTheGateLeftAlone) {
  server_.on_score = [](grpc::ServerContext*, const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    response->add_scores()->set_token_count(1);
    response->mutable_optimization()->set_gate(request.prompt() == "near" ? v1::GATE_DECISION_APPLIED
                                                                          : v1::GATE_DECISION_SKIPPED_NEIGHBORS_FAR);
    return grpc::Status::OK;
  };
  std::string lines;
  for (const char* prompt : {"near", "far", "farther"}) {
    absl::StrAppend(&lines, R"({"prompt": ")", prompt, R"(", "answer": "x"})", "\n");
  }
  const std::string path = WriteFile("gated.jsonl", lines);
  const ChildResult result = Run({"score", "--file", path});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "2 of 3 samples got the model's own answer, as the gate decided: skipped neighbors far 2\n");
  const Json summary = JsonLines(Run({"score", "--file", path, "--json"}).out).back().at("summary");
  EXPECT_EQ(summary.at("left_alone").at("skipped_neighbors_far"), 2);
  EXPECT_EQ(summary.at("left_alone").size(), 1);
}

TEST_F(CliTest, ScoreFileFailsWhereNothingWasScored) {
  const std::string empty = WriteFile("empty.jsonl", "\n");
  const ChildResult none = Run({"score", "--file", empty});
  EXPECT_EQ(none.exit_code, 4);
  EXPECT_EQ(none.out, "0 of 0 correct, 0 malformed\n");
  EXPECT_EQ(none.err, "c3po: INVALID_ARGUMENT: " + empty + ": holds no sample\n");
  const ChildResult broken = Run({"score", "--file", WriteFile("broken.jsonl", "junk\n")});
  EXPECT_EQ(broken.exit_code, 4);
  EXPECT_THAT(broken.err, HasSubstr(": no sample was scored\n"));
}

TEST_F(CliTest, ScoreFileNamesTheLineThatFailed) {
  server_.on_score = [](grpc::ServerContext*, const v1::ScoreRequest&, v1::ScoreResponse*) {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "other model");
  };
  const std::string path = WriteFile("fails.jsonl", "\n{\"prompt\": \"1\", \"answer\": \"x\"}\n");
  const ChildResult result = Run({"score", "--file", path});
  EXPECT_EQ(result.exit_code, 6);
  EXPECT_EQ(result.err, "c3po: FAILED_PRECONDITION: " + path + ":2: other model\n");
}

TEST_F(CliTest, TokenizeBothWays) {
  EXPECT_THAT(Run({"tokenize", "ab"}).out, AllOf(HasSubstr("97  a"), HasSubstr("2 tokens")));
  EXPECT_EQ(JsonLines(Run({"tokenize", "ab", "--json"}).out).at(0).at("ids"), Json({97, 98}));
  EXPECT_EQ(Run({"tokenize", "--ids", "104,105"}).out, "hi\n");
}

TEST_F(CliTest, InfoWaitsUntilTheServerServes) {
  server_.SetServing(false);
  const ChildResult waiting = Run({"info", "--wait", "0.3"});
  EXPECT_EQ(waiting.exit_code, 8);
  EXPECT_THAT(waiting.err, HasSubstr("it says NOT_SERVING"));
  server_.SetServing(true);
  const ChildResult result = Run({"info", "--wait", "20"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, AllOf(HasSubstr("tiny"), HasSubstr("queue_depth_max")));
  EXPECT_EQ(JsonLines(Run({"info", "--json"}).out).at(0).at("limits").at("queue_depth_max"), "256");
}

}  // namespace
}  // namespace c3po
