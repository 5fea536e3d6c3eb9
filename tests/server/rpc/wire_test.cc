#include "server/rpc/wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "c3po/v1/reference.pb.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

v1::Reference ReferenceOf(size_t bytes) {
  v1::Reference reference;
  reference.mutable_sample()->set_prompt(std::string(bytes, 'x'));
  return reference;
}

TEST(Wire, AMessageComesBackAsItWas) {
  const auto bytes = ToBytes(ReferenceOf(1000));
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(BytesOf(*bytes), ReferenceOf(1000).ByteSizeLong());
  const auto read = ParseRequest<v1::Reference>(*bytes);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->sample().prompt(), std::string(1000, 'x'));
}

TEST(Wire, AnAnswerBeyondTheLimitIsAnErrorAndIsNotHandedOver) {
  const size_t size = ReferenceOf(1000).ByteSizeLong();
  EXPECT_TRUE(ToBytes(ReferenceOf(1000), size).ok());
  const absl::Status refused = ToBytes(ReferenceOf(1000), size - 1).status();
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr(std::to_string(size - 1)));
  EXPECT_FALSE(ToBytes(ReferenceOf(kMessageBytesMax)).ok());
  // What protobuf cannot serialize is far beyond.
  EXPECT_LT(kMessageBytesMax, size_t{2} << 30);
  EXPECT_LT(kAnswerBytesMax, kMessageBytesMax);
}

TEST(Wire, NoMessageHasNoBytes) { EXPECT_EQ(BytesOf(grpc::ByteBuffer()), 0U); }

}  // namespace
}  // namespace c3po
