#include "index/base/json_nesting.h"

#include <string>

#include "gtest/gtest.h"

namespace c3po {
namespace {

TEST(NestsDeeperThan, CountsArraysAndObjectsThatAreOpenAtOnce) {
  EXPECT_FALSE(NestsDeeperThan("", 0));
  EXPECT_FALSE(NestsDeeperThan("7", 0));
  EXPECT_TRUE(NestsDeeperThan("[]", 0));
  EXPECT_FALSE(NestsDeeperThan(R"([{"a":[]},{"b":[]}])", 3));
  EXPECT_TRUE(NestsDeeperThan(R"([{"a":[]},{"b":[[]]}])", 3));
  EXPECT_TRUE(NestsDeeperThan(std::string(1 << 20, '['), kJsonLevelsMax));
}

TEST(NestsDeeperThan, PassesOverStrings) {
  EXPECT_FALSE(NestsDeeperThan(R"(["[[[[", "\"[[[", "\\", "{"])", 1));
  EXPECT_TRUE(NestsDeeperThan(R"(["\\", [[1]]])", 2));
  EXPECT_FALSE(NestsDeeperThan("[\"unfinished \\", 1));
}

}  // namespace
}  // namespace c3po
