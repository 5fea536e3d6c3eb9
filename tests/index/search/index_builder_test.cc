#include "index/search/index_builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

constexpr int kDimension = 6, kExactMax = 60;
constexpr int64_t kGeneration = 4;

class IndexBuilderTest : public ::testing::Test {
 protected:
  IndexBuilderTest() {
    std::mt19937 random(7);
    for (int i = 0; i < 200; ++i) vectors_.push_back(RandomUnitVector(random, kDimension));
    for (int i = 0; i < 200; ++i) labeled_.push_back({i, vectors_[i]});
  }
  absl::Span<const LabeledVector> First(size_t count) const { return absl::MakeConstSpan(labeled_).first(count); }

  const IndexOptions options_{kDimension, kExactMax, HnswOptions()};
  const IndexBuilder builder_{options_};
  std::vector<std::vector<float>> vectors_;
  std::vector<LabeledVector> labeled_;
  ScratchFolder folder_;
};

TEST_F(IndexBuilderTest, TheNumberOfVectorsDecidesTheKind) {
  EXPECT_FALSE(builder_.Build({})->approximate());
  EXPECT_FALSE(builder_.Build(First(kExactMax))->approximate());
  EXPECT_TRUE(builder_.Build(First(kExactMax + 1))->approximate());
  EXPECT_FALSE(builder_.Saved(kExactMax));
  EXPECT_TRUE(builder_.Saved(kExactMax + 1));
}

TEST_F(IndexBuilderTest, AnIndexForFewerIsOutgrownAndOneForMoreStays) {
  const auto few = builder_.Build(First(10)), many = builder_.Build(First(200));
  EXPECT_FALSE(builder_.Outgrown(*few, kExactMax));
  EXPECT_TRUE(builder_.Outgrown(*few, kExactMax + 1));
  EXPECT_FALSE(builder_.Outgrown(*many, 1));
  EXPECT_FALSE(builder_.Outgrown(*many, 100000));
}

// Whatever the kind, through the interface alone.
TEST_F(IndexBuilderTest, WhatIsSavedIsLoadedAndWhatIsBuiltAsFastWritesNoFile) {
  for (const size_t count : {size_t{20}, labeled_.size()}) {
    const std::string path = folder_.File(std::to_string(count));
    const auto built = builder_.Build(First(count));
    ASSERT_TRUE(built->Save(path, kGeneration).ok());
    ASSERT_EQ(std::filesystem::exists(path), builder_.Saved(static_cast<int64_t>(count)));
    const auto loaded = builder_.Load(path, kGeneration, First(count));
    if (!builder_.Saved(static_cast<int64_t>(count))) {
      EXPECT_EQ(loaded.status().code(), absl::StatusCode::kNotFound);
      continue;
    }
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    std::vector<float> queries;
    for (const auto& vector : vectors_) queries.insert(queries.end(), vector.begin(), vector.end());
    EXPECT_EQ(*(*loaded)->SearchMany(queries, 9), *built->SearchMany(queries, 9));
  }
}

TEST_F(IndexBuilderTest, AFileOfOtherVectorsIsRefused) {
  const std::string path = folder_.File("graph");
  ASSERT_TRUE(builder_.Build(First(100))->Save(path, kGeneration).ok());
  const auto refused = [&](int64_t generation, absl::Span<const LabeledVector> vectors) {
    const absl::Status status = builder_.Load(path, generation, vectors).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return std::string(status.message());
  };
  EXPECT_THAT(refused(kGeneration + 1, First(100)), HasSubstr("of generation 4, the store is at 5"));
  EXPECT_THAT(refused(kGeneration, First(99)), HasSubstr("holds other embeddings than the store"));
  EXPECT_THAT(refused(kGeneration, First(101)), HasSubstr("holds other embeddings than the store"));
  labeled_[50].vector = vectors_[150];
  EXPECT_THAT(refused(kGeneration, First(100)), HasSubstr("holds other embeddings than the store"));
}

TEST_F(IndexBuilderTest, AGraphThatCannotBeMadeLeavesExactSearch) {
  IndexOptions options = options_;
  options.hnsw.m = 1;  // Refused by Check, so that nobody builds with it.
  EXPECT_THAT(std::string(IndexBuilder::Check(options).message()), HasSubstr("hnsw.m"));
  EXPECT_TRUE(IndexBuilder::Check(options_).ok());
  const auto index = IndexBuilder(options).Build(labeled_);
  EXPECT_FALSE(index->approximate());
  EXPECT_EQ(index->size(), labeled_.size());
}

}  // namespace
}  // namespace c3po
