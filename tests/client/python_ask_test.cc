// Runs client/python/examples/ask.py against the fake server.

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "tests/client/child_process.h"
#include "tests/client/fake_server.h"

namespace c3po {
namespace {

const std::pair<const std::string, std::string> kPythonPath = {"PYTHONPATH", C3PO_PYTHON_PATH};

class PythonAskTest : public ::testing::Test {
 protected:
  ChildResult Run(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {C3PO_TOOLS_PYTHON, C3PO_SOURCE_DIR "/client/python/examples/ask.py"});
    return ChildProcess(arguments, "", {{"C3PO_SERVER", server_.address()}, kPythonPath}).Wait();
  }

  FakeServer server_;
};

TEST_F(PythonAskTest, StreamsTheText) {
  const ChildResult result = Run({"hi"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "Hello world\n");
}

TEST_F(PythonAskTest, PrintsTheSameEventsAsTheCli) {
  const ChildResult python =
      Run({"hi", "--json", "--method", "ngd", "--k", "3", "--collection", "science", "--choices", " no", " yes"});
  const ChildResult cli =
      ChildProcess({C3PO_CLI_BINARY, "ask", "hi", "--json", "--method", "ngd", "--k", "3", "--collection", "science",
                    "--choices", " no", " yes", "--server", server_.address()})
          .Wait();
  ASSERT_EQ(python.exit_code, 0) << python.err;
  const std::vector<std::string> python_lines = absl::StrSplit(python.out, '\n', absl::SkipEmpty());
  const std::vector<std::string> cli_lines = absl::StrSplit(cli.out, '\n', absl::SkipEmpty());
  ASSERT_EQ(python_lines.size(), 4);
  ASSERT_EQ(cli_lines.size(), 4);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(nlohmann::json::parse(python_lines[i]), nlohmann::json::parse(cli_lines[i])) << i;
  }
  const auto requests = server_.generate_requests();
  ASSERT_EQ(requests.size(), 2);
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(requests[0], requests[1]));
}

TEST_F(PythonAskTest, AMisspelledVariableIsToldWithTheNearestNameAndOthersAreNot) {
  const auto run = [&](const std::string& name) {
    return ChildProcess({C3PO_TOOLS_PYTHON, C3PO_SOURCE_DIR "/client/python/examples/ask.py", "hi", "--server",
                         server_.address()},
                        "", {{name, "value"}, kPythonPath})
        .Wait();
  };
  const ChildResult wrong = run("C3PO_TOKENS");
  EXPECT_EQ(wrong.exit_code, 0) << wrong.err;
  EXPECT_EQ(wrong.out, "Hello world\n");
  EXPECT_THAT(wrong.err, ::testing::HasSubstr("ask.py: warning: C3PO_TOKENS is set, and nothing reads it here; did you "
                                              "mean C3PO_TOKEN?\n"));
  EXPECT_THAT(run("C3PO_STORE").err, ::testing::Not(::testing::HasSubstr("C3PO_STORE")));
}

TEST_F(PythonAskTest, ATokenIsNotSentInPlaintextToAnotherMachine) {
  const auto run = [](const std::string& server, std::vector<std::string> more) {
    more.insert(more.begin(),
                {C3PO_TOOLS_PYTHON, C3PO_SOURCE_DIR "/client/python/examples/ask.py", "hi", "--server", server});
    return ChildProcess(more, "", {{"C3PO_TOKEN", "secret"}, kPythonPath}).Wait();
  };
  for (const char* server : {"192.0.2.1:1", "127.0.0.1.example.org:1"}) {
    const ChildResult refused = run(server, {});
    EXPECT_EQ(refused.exit_code, 2) << refused.err;
    EXPECT_NE(refused.err.find("is another machine"), std::string::npos) << refused.err;
    EXPECT_EQ(refused.err.find("secret"), std::string::npos);
  }
  const ChildResult asked_for = run("192.0.2.1:1", {"--insecure-token", "--timeout", "0.2"});
  EXPECT_TRUE(asked_for.exit_code == 3 || asked_for.exit_code == 8) << asked_for.err;
  EXPECT_EQ(run(server_.address(), {}).exit_code, 0);
}

// gRPC would go to port 443.
TEST_F(PythonAskTest, AnAddressNeedsItsPort) {
  for (const char* server : {"c3pod", "[::1]", "c3pod:https"}) {
    const ChildResult refused =
        ChildProcess({C3PO_TOOLS_PYTHON, C3PO_SOURCE_DIR "/client/python/examples/ask.py", "hi", "--server", server},
                     "", {kPythonPath})
            .Wait();
    EXPECT_EQ(refused.exit_code, 2) << refused.err;
    EXPECT_EQ(refused.err, std::string("ask.py: '") + server + "' is not ADDRESS:PORT\n");
  }
}

TEST_F(PythonAskTest, AFailedCallPrintsOneLineAndExitsWithItsCode) {
  const ChildResult result = Run({"hi", "--k", "0"});
  EXPECT_EQ(result.exit_code, 4);
  EXPECT_EQ(result.err, "ask.py: INVALID_ARGUMENT: optimization.k: must be at least 1\n");
}

}  // namespace
}  // namespace c3po
