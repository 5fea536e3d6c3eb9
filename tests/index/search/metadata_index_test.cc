#include "index/search/metadata_index.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/index/search/random_filter.h"

namespace c3po {
namespace {

ReferenceRecord RandomRecord(std::mt19937& random) {
  ReferenceRecord record;
  record.sample.metadata = RandomMetadata(random);
  record.successful = random() % 3 != 0;
  return record;
}

using Members = std::map<int64_t, ReferenceRecord>;  // by label

std::vector<int64_t> Naive(const Members& members, const MetadataFilter& filter, bool successful_only) {
  std::vector<int64_t> labels;
  for (const auto& [label, record] : members) {
    if (successful_only && !record.successful) continue;
    if (Matches(filter, record.sample.metadata)) labels.push_back(label);
  }
  return labels;
}

std::vector<int64_t> Found(const MetadataIndex& index, const MetadataFilter& filter, bool successful_only) {
  const auto labels = index.Find(filter, successful_only)->labels();
  return {labels.begin(), labels.end()};
}

TEST(MetadataIndex, FindsWhatAPlainLoopFindsThroughChanges) {
  for (uint32_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    MetadataIndex index;
    Members members;
    size_t some = 0, none = 0, all = 0;
    for (int round = 0; round < 40; ++round) {
      for (size_t change = 0; change < 20; ++change) {
        const auto label = static_cast<int64_t>(random() % 300) - 20;
        const auto known = members.find(label);
        if (known != members.end()) {
          index.Remove(label, known->second);
          members.erase(known);
        } else {
          members[label] = RandomRecord(random);
          index.Add(label, members[label]);
        }
      }
      for (int i = 0; i < 15; ++i) {
        const MetadataFilter filter = RandomFilter(random);
        for (const bool successful_only : {false, true}) {
          const std::vector<int64_t> expected = Naive(members, filter, successful_only);
          ASSERT_EQ(Found(index, filter, successful_only), expected) << FilterText(filter);
          ASSERT_EQ(Found(index, filter, successful_only), expected) << "kept";
          (expected.empty() ? none : successful_only || expected.size() < members.size() ? some : all) += 1;
        }
      }
    }
    // The filters are worth something.
    EXPECT_GT(some, 300u);
    EXPECT_GT(none, 50u);
    EXPECT_GT(all, 20u);
  }
}

TEST(MetadataIndex, KeepsTheFiltersAskedForLastUntilAChange) {
  std::mt19937 random(7);
  MetadataIndex index;
  const ReferenceRecord record = RandomRecord(random);
  index.Add(1, record);
  const auto filter_of = [](size_t number) {
    MetadataCondition condition;
    condition.key = absl::StrCat(number);
    condition.exists = false;
    return MetadataFilter{{condition}, {}, {}};
  };
  const auto first = index.Find(filter_of(0), false);
  EXPECT_EQ(index.Find(filter_of(0), false), first);
  EXPECT_NE(index.Find(filter_of(0), true), first);  // Of the other view.
  for (size_t i = 2; i < MetadataIndex::kKeptFilters; ++i) index.Find(filter_of(i), false);
  EXPECT_EQ(index.Find(filter_of(0), false), first);
  for (size_t i = 0; i < MetadataIndex::kKeptFilters; ++i) index.Find(filter_of(100 + i), false);
  EXPECT_NE(index.Find(filter_of(0), false), first);  // It gave way.
  const auto before = index.Find(filter_of(0), false);
  index.Add(2, record);
  EXPECT_EQ(Found(index, filter_of(0), false), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(before->labels().size(), 1u);
  index.Remove(1, record);
  EXPECT_EQ(Found(index, filter_of(0), false), (std::vector<int64_t>{2}));
  index.Remove(9, record);  // Not there.
  EXPECT_EQ(Found(index, filter_of(0), false), (std::vector<int64_t>{2}));
}

TEST(MetadataIndex, PlacesAreGivenAnewAndWhatIsGoneTakesNoMemory) {
  std::mt19937 random(8);
  MetadataIndex index;
  std::vector<ReferenceRecord> records;
  for (int64_t i = 0; i < 500; ++i) {
    records.push_back(RandomRecord(random));
    records.back().sample.metadata["own"] = absl::StrCat("value of ", i);
    index.Add(i, records.back());
  }
  const int64_t full = index.MemoryBytes();
  EXPECT_GT(full, 500 * 200);
  for (int64_t i = 0; i < 500; ++i) index.Remove(i, records[static_cast<size_t>(i)]);
  EXPECT_EQ(index.MemoryBytes(), 500 * 30);
  for (int64_t i = 0; i < 500; ++i) index.Add(1000 + i, records[static_cast<size_t>(i)]);
  EXPECT_EQ(index.MemoryBytes(), full);
}

}  // namespace
}  // namespace c3po
