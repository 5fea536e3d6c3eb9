// Runs the sample programs in C++ and Python against the fake server, whose log-likelihood of a text is minus the
// number of its letters "e" plus one.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/client/child_process.h"
#include "tests/client/fake_server.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

TEST(Samples, ClassifyByScoreInBothLanguages) {
  FakeServer server;
  const std::vector<std::vector<std::string>> commands = {
      {C3PO_SAMPLE_CLASSIFY, server.address(), "mine", "Review: dull\nSentiment:", " bitter sweet", " poor", " great"},
      {C3PO_TOOLS_PYTHON, C3PO_SOURCE_DIR "/client/python/examples/classify.py", "--server", server.address(),
       "--collection", "mine", "Review: dull\nSentiment:", " bitter sweet", " poor", " great"}};
  for (const std::vector<std::string>& command : commands) {
    const ChildResult result =
        ChildProcess(command, "", {{"PYTHONDONTWRITEBYTECODE", "1"}, {"PYTHONPATH", C3PO_PYTHON_PATH}}).Wait();
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, " poor\t-1\n");
  }
  const auto requests = server.score_requests();
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_EQ(requests[0].optimization().collection(), "mine");
  EXPECT_EQ(requests[0].SerializeAsString(), requests[1].SerializeAsString());
}

TEST(Samples, ClassifyTellsAFailedCall) {
  FakeServer server;
  server.on_score = [](grpc::ServerContext*, const v1::ScoreRequest&, v1::ScoreResponse*) {
    return BadField("optimization.k", "must be at least 1");
  };
  const ChildResult cpp = ChildProcess({C3PO_SAMPLE_CLASSIFY, server.address(), "mine", "p", " a", " b"}).Wait();
  EXPECT_EQ(cpp.exit_code, 1);
  EXPECT_THAT(cpp.err, HasSubstr("optimization.k: must be at least 1"));
  const ChildResult python = ChildProcess({C3PO_TOOLS_PYTHON, C3PO_SOURCE_DIR "/client/python/examples/classify.py",
                                           "--server", server.address(), "p", " a", " b"},
                                          "", {{"PYTHONDONTWRITEBYTECODE", "1"}, {"PYTHONPATH", C3PO_PYTHON_PATH}})
                                 .Wait();
  EXPECT_EQ(python.exit_code, 4);
  EXPECT_THAT(python.err, HasSubstr("classify.py: INVALID_ARGUMENT: optimization.k"));
}

}  // namespace
}  // namespace c3po
