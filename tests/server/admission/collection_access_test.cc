#include "server/admission/collection_access.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

CollectionNames Names(const std::string& text) {
  const auto names = ParseCollectionNames(text);
  EXPECT_TRUE(names.ok()) << text << ": " << names.status();
  return names.ok() ? *names : CollectionNames();
}

TEST(CollectionAccess, WhoNamesNoCollectionMayUseAll) {
  const CollectionAccess access;
  EXPECT_TRUE(access.Everything());
  EXPECT_TRUE(access.ReadsEverything());
  EXPECT_TRUE(access.CheckRead("collection", "a").ok());
  EXPECT_TRUE(access.CheckWrite("collection", "not there yet").ok());
}

TEST(CollectionAccess, WhoMayWriteMayReadAndNotTheOtherWayRound) {
  const CollectionAccess access(Names("a,b"), Names("c"));
  EXPECT_FALSE(access.Everything());
  EXPECT_FALSE(access.ReadsEverything());
  EXPECT_THAT(access.Readable(), ElementsAre("a", "b", "c"));
  for (const char* readable : {"a", "b", "c"}) EXPECT_TRUE(access.MayRead(readable)) << readable;
  for (const char* other : {"", "A", "a,b", "ab", "d", "*"}) {
    EXPECT_FALSE(access.MayRead(other)) << other;
    EXPECT_FALSE(access.MayWrite(other)) << other;
  }
  EXPECT_FALSE(access.MayWrite("a"));
  EXPECT_TRUE(access.MayWrite("c"));
}

TEST(CollectionAccess, AStarIsEveryCollection) {
  const CollectionAccess reader(Names("*"), Names("c"));
  EXPECT_TRUE(reader.ReadsEverything());
  EXPECT_FALSE(reader.Everything());
  EXPECT_TRUE(reader.MayRead("any"));
  EXPECT_FALSE(reader.MayWrite("any"));
  EXPECT_TRUE(CollectionAccess({}, Names("*")).Everything());
}

TEST(CollectionAccess, ARefusalNamesTheFieldAndOnlyWhatTheRequestNamed) {
  const CollectionAccess access(Names("a"), {});
  const absl::Status read = access.CheckRead("optimization.collection", "b");
  EXPECT_TRUE(absl::IsPermissionDenied(read));
  EXPECT_EQ(read.message(), "optimization.collection: the caller may not read the collection \"b\"");
  const absl::Status write = access.CheckWrite("collection", "a");
  EXPECT_TRUE(absl::IsPermissionDenied(write));
  EXPECT_EQ(write.message(), "collection: the caller may not change the collection \"a\"");
}

TEST(ParseCollectionNames, BytesMayBeEscaped) {
  const CollectionNames names = Names("a%20b,100%25,x%2Cy,%2A,gr\xc3\xbc%c3%bc");
  EXPECT_FALSE(names.all);
  EXPECT_THAT(names.names, ElementsAre("*", "100%", "a b", "gr\xc3\xbc\xc3\xbc", "x,y"));
}

TEST(ParseCollectionNames, WhatIsNoNameIsRefusedWithoutBeingRepeated) {
  for (const char* wrong : {"", ",", "a,,b", "a,", "secret%2", "secret%zz", "secret%", "secret%0a", "secret%ff"}) {
    const auto names = ParseCollectionNames(wrong);
    EXPECT_TRUE(absl::IsInvalidArgument(names.status())) << wrong;
    EXPECT_THAT(std::string(names.status().message()), Not(HasSubstr("secret")));
  }
  EXPECT_FALSE(ParseCollectionNames(std::string(129, 'n')).ok());
  EXPECT_THAT(Names("*").names, IsEmpty());
}

}  // namespace
}  // namespace c3po
