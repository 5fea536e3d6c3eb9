#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/rpc/doors/http/model_call.h"

namespace c3po {
namespace {

TEST(ModelNames, TheModelAndItWithEachCollection) {
  EXPECT_THAT(ModelNames("org/tiny", {"a", "b"}), testing::ElementsAre("org/tiny", "org/tiny@a", "org/tiny@b"));
}

TEST(ModelNames, AnswersAreOpenAis) {
  EXPECT_EQ(
      ModelAnswer("tiny", {"tiny", "tiny@a"}, "", 512, 7),
      R"({"object":"list","data":[{"id":"tiny","object":"model","created":7,"owned_by":"c3po","root":"tiny","parent":null,"max_model_len":512},{"id":"tiny@a","object":"model","created":7,"owned_by":"c3po","root":"tiny","parent":"tiny","max_model_len":512}]})");
  EXPECT_EQ(
      ModelAnswer("tiny", {"tiny"}, "tiny", 512, 7),
      R"({"id":"tiny","object":"model","created":7,"owned_by":"c3po","root":"tiny","parent":null,"max_model_len":512})");
}

}  // namespace
}  // namespace c3po
