// Searches by answer, against a plain loop over what was inserted.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/search/answer_groups.h"
#include "index/search/reference_catalog.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kDimension = 8;

// A reference whose answer is one of the choices " 0", " 1", ..., in an order of its own; no choices: a free answer.
ReferenceRecord Labeled(const std::string& collection, int number, int answers, bool has_choices = true) {
  ReferenceRecord record = MakeReference(collection, number, kDimension);
  std::mt19937 random(static_cast<uint32_t>(number));
  record.sample.answer = absl::StrCat(" ", number * number % 11 % answers);
  record.sample.choices.clear();
  for (int answer = 0; has_choices && answer < answers; ++answer) {
    record.sample.choices.push_back(absl::StrCat(" ", answer));
  }
  std::shuffle(record.sample.choices.begin(), record.sample.choices.end(), random);
  record.id = ReferenceId(collection, record.sample);
  return record;
}

double NaiveDistance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return std::sqrt(sum);
}

using ByAnswer = std::map<std::string, std::vector<std::string>>;  // ids, nearest first

ByAnswer Naive(const std::vector<ReferenceRecord>& records, const std::vector<float>& query, size_t k,
               bool successful_only, const std::set<std::string>& excluded) {
  std::vector<std::pair<double, const ReferenceRecord*>> all;
  for (const ReferenceRecord& record : records) {
    if ((successful_only && !record.successful) || excluded.count(record.id) > 0) continue;
    all.emplace_back(NaiveDistance(query, record.embedding), &record);
  }
  std::sort(all.begin(), all.end());
  ByAnswer by_answer;
  std::set<std::string> group;
  for (const auto& [distance, record] : all) {
    const std::set<std::string> choices(record->sample.choices.begin(), record->sample.choices.end());
    if (record == all.front().second) group = choices;
    if (choices != group) continue;
    const auto known = by_answer.find(record->sample.answer);
    if (known == by_answer.end() && by_answer.size() == k) continue;
    std::vector<std::string>& ids = by_answer[record->sample.answer];
    if (ids.size() < k) ids.push_back(record->id);
  }
  return by_answer;
}

ByAnswer Found(const std::vector<AnswerNeighbors>& found) {
  ByAnswer by_answer;
  for (const AnswerNeighbors& answer : found) {
    EXPECT_TRUE(std::is_sorted(answer.nearest.begin(), answer.nearest.end(),
                               [](const Neighbor& a, const Neighbor& b) { return a.distance < b.distance; }));
    for (const Neighbor& neighbor : answer.nearest) by_answer[answer.answer].push_back(neighbor.reference_id);
  }
  EXPECT_EQ(by_answer.size(), found.size());
  return by_answer;
}

class SearchByAnswerTest : public ::testing::Test {
 protected:
  void Open(int exact_references_max) {
    options_.model_digest = kModelDigest;
    options_.embedder_digest = kEmbedderDigest;
    options_.embedding_dimension = kDimension;
    options_.moe_layers = 3;
    options_.experts = 4;
    options_.exact_references_max = exact_references_max;
    Restart();
  }
  void Restart() {
    catalog_.reset();
    store_.reset();
    store_ = *OpenReferenceStore(folder_.File("references.db"));
    catalog_ = *ReferenceCatalog::Open(store_.get(), options_);
  }
  void Insert(const std::vector<ReferenceRecord>& records) {
    ASSERT_TRUE(catalog_->Insert(records).ok());
    all_.insert(all_.end(), records.begin(), records.end());
  }
  void Check(int queries, const std::set<std::string>& excluded = {}) {
    std::mt19937 random(5);
    const std::vector<std::string> ids(excluded.begin(), excluded.end());
    for (int i = 0; i < queries; ++i) {
      const std::vector<float> query = RandomUnitVector(random, kDimension);
      for (const bool successful_only : {false, true}) {
        for (const int k : {1, 3, 7}) {
          const auto found = catalog_->SearchByAnswer("c", query, k, successful_only, ids);
          ASSERT_TRUE(found.ok()) << found.status();
          EXPECT_EQ(Found(*found), Naive(all_, query, static_cast<size_t>(k), successful_only, excluded));
        }
      }
    }
  }

  ScratchFolder folder_;
  CatalogOptions options_;
  std::unique_ptr<ReferenceStore> store_;
  std::unique_ptr<ReferenceCatalog> catalog_;
  std::vector<ReferenceRecord> all_;
};

TEST_F(SearchByAnswerTest, FindsWhatAPlainLoopFindsAmongTheChoicesOfTheNearest) {
  Open(/*exact_references_max=*/1000);
  std::vector<ReferenceRecord> records;
  for (int i = 0; i < 120; ++i) records.push_back(Labeled("c", i, i % 3 == 0 ? 2 : 5, i % 4 != 0));
  Insert(records);
  Check(12);
  std::set<std::string> excluded = {"no such id"};
  for (size_t i = 0; i < all_.size(); i += 3) excluded.insert(all_[i].id);
  Check(12, excluded);
}

// Groups follow what comes, goes, changes and is read again.
TEST_F(SearchByAnswerTest, FollowsChangesAndRestarts) {
  Open(/*exact_references_max=*/1000);
  for (int begin = 0; begin < 90; begin += 30) {
    std::vector<ReferenceRecord> records;
    for (int i = begin; i < begin + 30; ++i) records.push_back(Labeled("c", i, 3));
    Insert(records);
    Check(3);
  }
  ASSERT_TRUE(catalog_->Insert({Labeled("other", 1, 3)}).ok());
  std::vector<std::string> gone;
  std::vector<ReferenceRecord> left;
  for (size_t i = 0; i < all_.size(); ++i) {
    if (i % 3 == 1) {
      gone.push_back(all_[i].id);
    } else {
      left.push_back(all_[i]);
    }
  }
  ASSERT_TRUE(catalog_->Erase(gone).ok());
  all_ = left;
  Check(5);
  // An id of the sample's own, which comes again with another answer.
  ReferenceRecord own = Labeled("c", 200, 3);
  own.sample.id = "mine";
  own.id = ReferenceId("c", own.sample);
  own.sample.answer = " 0";
  ASSERT_TRUE(catalog_->Insert({own}).ok());
  own.sample.answer = " 2";
  Insert({own});
  Check(5);
  Restart();
  Check(5);
}

TEST_F(SearchByAnswerTest, OfMoreAnswersThanAreSearchedOneByOneTheNearestAreFound) {
  Open(/*exact_references_max=*/1000);
  std::vector<ReferenceRecord> records;
  for (int i = 0; i < 400; ++i) {
    records.push_back(MakeReference("c", i));
    records.back().sample.choices.clear();
    records.back().sample.answer = absl::StrCat(" ", i % 170);
    records.back().id = ReferenceId("c", records.back().sample);
  }
  ASSERT_GT(170u, ReferenceCatalog::kAnswersSearchedMax);
  Insert(records);
  Check(8);
  Check(8, {records[3].id, records[173].id, records[9].id});
}

// Where a graph is searched, few admitted vectors are compared one by one, so that nothing is missed here either.
TEST_F(SearchByAnswerTest, FindsThroughAGraph) {
  Open(/*exact_references_max=*/50);
  std::vector<ReferenceRecord> records;
  for (int i = 0; i < 300; ++i) records.push_back(Labeled("c", i, 4));
  Insert(records);
  Check(10);
}

TEST_F(SearchByAnswerTest, SaysWhatIsWrong) {
  Open(1000);
  const std::vector<float> query(kDimension, 0.5f);
  EXPECT_EQ(catalog_->SearchByAnswer("c", query, 3, false, {}).status().code(), absl::StatusCode::kNotFound);
  ReferenceRecord failed = Labeled("c", 1, 3);
  failed.successful = false;
  Insert({failed});
  EXPECT_THAT(*catalog_->SearchByAnswer("c", query, 3, true, {}), IsEmpty());
  EXPECT_THAT(*catalog_->SearchByAnswer("c", query, 3, false, {failed.id}), IsEmpty());
  EXPECT_THAT(catalog_->SearchByAnswer("c", query, 0, false, {}).status().message(), HasSubstr("k: 0"));
  EXPECT_THAT(catalog_->SearchByAnswer("c", {query.data(), 3}, 1, false, {}).status().message(),
              HasSubstr("embedding: "));
}

TEST(AnswerGroups, ComparesChoicesAsSetsAndKeepsTextsApart) {
  const auto record = [](std::vector<std::string> choices, const std::string& answer) {
    ReferenceRecord made;
    made.sample.choices = std::move(choices);
    made.sample.answer = answer;
    made.successful = answer == "a";
    return made;
  };
  const auto labels = [](const AnswerGroups::Answer& answer) {
    return std::vector<int64_t>(answer.labels->labels().begin(), answer.labels->labels().end());
  };
  AnswerGroups groups;
  groups.Add(1, record({"a", "b"}, "a"));
  groups.Add(2, record({"b", "a"}, "b"));
  groups.Add(3, record({"ab", ""}, ""));  // The same letters.
  groups.Add(4, record({"b", "a"}, "a"));
  const auto both = groups.Of(record({"b", "a"}, "a"), false);
  ASSERT_EQ(both.size(), 2u);
  EXPECT_EQ(both[0].text, "a");
  EXPECT_THAT(labels(both[0]), ElementsAre(1, 4));
  EXPECT_THAT(labels(both[1]), ElementsAre(2));
  EXPECT_EQ(groups.Of(record({"b", "a"}, "a"), true).size(), 1u);
  EXPECT_EQ(both[0].labels, groups.Of(record({"a", "b"}, "b"), false)[0].labels);  // The filter is kept
  groups.Remove(4, record({"b", "a"}, "a"));
  EXPECT_THAT(labels(groups.Of(record({"b", "a"}, "a"), false)[0]), ElementsAre(1));  // until a change.
  groups.Remove(1, record({"a", "b"}, "a"));
  groups.Remove(2, record({"b", "a"}, "b"));
  EXPECT_THAT(groups.Of(record({"a", "b"}, "a"), false), IsEmpty());
  groups.Remove(2, record({"b", "a"}, "b"));  // Not there.
  EXPECT_EQ(groups.Of(record({"ab", ""}, ""), false).size(), 1u);
}

}  // namespace
}  // namespace c3po
