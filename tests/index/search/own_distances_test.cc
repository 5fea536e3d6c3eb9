#include "index/search/own_distances.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "index/search/reference_catalog.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

constexpr int kDimension = 8;

double NaiveDistance(absl::Span<const float> a, absl::Span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return std::sqrt(sum);
}

// The distance of every member to its nearest other of another embedding, ascending, by comparing all pairs in double
// precision. Of more than kSampleMax members those with the smallest ids, whose beginnings are the labels.
std::vector<double> NaiveOwnDistances(const std::vector<ReferenceRecord>& all, bool successful_only) {
  std::vector<const ReferenceRecord*> members;
  for (const ReferenceRecord& record : all) {
    if (record.successful || !successful_only) members.push_back(&record);
  }
  std::sort(members.begin(), members.end(),
            [](const ReferenceRecord* a, const ReferenceRecord* b) { return a->id < b->id; });
  std::vector<double> distances;
  for (size_t i = 0; i < std::min(members.size(), OwnDistances::kSampleMax); ++i) {
    double least = INFINITY;
    for (const ReferenceRecord* other : members) {
      const double distance = NaiveDistance(members[i]->embedding, other->embedding);
      if (other != members[i] && distance > OwnDistances::kSameEmbedding) least = std::min(least, distance);
    }
    if (std::isfinite(least)) distances.push_back(least);
  }
  std::sort(distances.begin(), distances.end());
  return distances;
}

class OwnDistancesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    options_.model_digest = kModelDigest;
    options_.embedder_digest = kEmbedderDigest;
    options_.embedding_dimension = kDimension;
    options_.moe_layers = 3;
    options_.experts = 4;
    options_.exact_references_max = 700;
    auto store = OpenReferenceStore(folder_.File("references.db"));
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    Open();
  }

  void Open() {
    auto catalog = ReferenceCatalog::Open(store_.get(), options_);
    ASSERT_TRUE(catalog.ok()) << catalog.status();
    catalog_ = *std::move(catalog);
  }

  std::optional<double> Quantile(double quantile, bool successful_only = false) {
    const auto found = catalog_->OwnDistanceQuantile("math", successful_only, quantile);
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() ? *found : std::nullopt;
  }

  void Add(const std::vector<ReferenceRecord>& records) {
    ASSERT_TRUE(catalog_->Insert(records).ok());
    for (const ReferenceRecord& record : records) {
      std::erase_if(held_, [&](const ReferenceRecord& old) { return old.id == record.id; });
      held_.push_back(record);
    }
  }

  void Erase(const std::vector<std::string>& ids) {
    ASSERT_EQ(*catalog_->Erase(ids), static_cast<int64_t>(ids.size()));
    for (const std::string& id : ids) {
      std::erase_if(held_, [&](const ReferenceRecord& old) { return old.id == id; });
    }
  }

  // Every rank, in both views.
  void ExpectTheNaiveDistances() {
    for (const bool successful_only : {false, true}) {
      const std::vector<double> naive = NaiveOwnDistances(held_, successful_only);
      for (size_t i = 0; i < naive.size(); ++i) {
        const double rank = (static_cast<double>(i) + 0.5) / static_cast<double>(naive.size());
        const std::optional<double> found = Quantile(rank, successful_only);
        ASSERT_TRUE(found.has_value());
        ASSERT_NEAR(*found, naive[i], 1e-5) << "rank " << i << " of " << naive.size();
      }
    }
  }

  ScratchFolder folder_;
  CatalogOptions options_;
  std::unique_ptr<ReferenceStore> store_;
  std::unique_ptr<ReferenceCatalog> catalog_;
  std::vector<ReferenceRecord> held_;
};

TEST_F(OwnDistancesTest, StayTrueAsACollectionGrowsAndShrinks) {
  std::mt19937 random(20261129);
  int next = 0;
  for (int round = 0; round < 12; ++round) {
    Add(MakeReferences("math", next, next + 9));
    next += 9;
    std::vector<std::string> leaving;
    for (const ReferenceRecord& record : held_) {
      if (random() % 4 == 0) leaving.push_back(record.id);
    }
    if (leaving.size() < held_.size()) Erase(leaving);
    ExpectTheNaiveDistances();
  }
  ASSERT_GT(held_.size(), 10u);
  Open();  // From the store alone.
  ExpectTheNaiveDistances();
}

// What a change needs searched is asked for at once: a device runs it as one.
TEST(OwnDistances, AskForAllThatHasToBeSearchedInOneCall) {
  std::vector<OwnDistances::Member> members;
  for (int i = 0; i < 30; ++i) {
    members.push_back({i, std::make_shared<const ReferenceRecord>(MakeReference("math", i))});
  }
  int calls = 0;
  size_t asked = 0;
  std::set<int64_t> gone;
  const auto refresh = [&](const OwnDistances& before, absl::Span<const OwnDistances::Member> sample) {
    calls = 0;
    asked = 0;
    return OwnDistances::Refreshed(
        before, sample, {}, [&](const OwnDistances::Member& member) { return !gone.contains(member.label); },
        [&](absl::Span<const OwnDistances::Member> searched) {
          ++calls;
          asked = searched.size();
          // The nearest of every third is the last member, of the others the first.
          std::vector<OwnDistances::Nearest> nearest;
          for (const auto& member : searched) {
            nearest.push_back(
                {member.label % 3 == 0 ? members.back() : members.front(), static_cast<float>(member.label + 1)});
          }
          return nearest;
        });
  };
  const OwnDistances first = refresh({}, members);
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(asked, 30u);
  for (int i = 0; i < 30; ++i) EXPECT_EQ(*first.Quantile((i + 0.5) / 30), i + 1) << "each is given its own";
  refresh(first, members);
  EXPECT_EQ(calls, 0);
  gone.insert(29);
  refresh(first, absl::MakeSpan(members).first(29));
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(asked, 10u) << "those whose nearest other is gone";
}

TEST_F(OwnDistancesTest, LeaveOutAReferenceThatIsReplacedByAnotherModels) {
  Add(MakeReferences("math", 0, 12));
  ReferenceRecord foreign = held_[4];
  foreign.model_digest = std::string(64, 'f');
  const auto outcome = catalog_->Insert({foreign});
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  ASSERT_EQ((*outcome)[0], AddOutcome::kReplaced);
  held_.erase(held_.begin() + 4);
  ExpectTheNaiveDistances();
}

TEST_F(OwnDistancesTest, OfALargeViewAreThoseOfTheSmallestIds) {
  Add(MakeReferences("math", 0, 650));
  ExpectTheNaiveDistances();
  std::vector<std::string> leaving;
  for (size_t i = 0; i < held_.size(); i += 2) leaving.push_back(held_[i].id);
  Erase(leaving);
  ExpectTheNaiveDistances();
  Add(MakeReferences("math", 650, 950));
  ExpectTheNaiveDistances();
}

TEST_F(OwnDistancesTest, OfAViewThatAGraphSearchesAreNearlyTheNaiveOnes) {
  options_.exact_references_max = 100;
  Open();
  Add(MakeReferences("math", 0, 400));
  const std::vector<double> naive = NaiveOwnDistances(held_, false);
  EXPECT_NEAR(*Quantile(0.95), naive[static_cast<size_t>(std::ceil(0.95 * 400)) - 1], 0.05);
}

TEST_F(OwnDistancesTest, APromptThatIsThereTwiceDoesNotMakeTheCollectionLookDenser) {
  std::vector<ReferenceRecord> records = MakeReferences("math", 0, 20);
  Add(records);
  const double alone = *Quantile(1);
  for (int number = 0; number < 20; ++number) {
    ReferenceRecord again = MakeReference("math", number + 1000);
    again.embedding = records[static_cast<size_t>(number)].embedding;
    again.successful = records[static_cast<size_t>(number)].successful;
    Add({again});
  }
  EXPECT_NEAR(*Quantile(1), alone, 1e-6);
  ExpectTheNaiveDistances();
}

TEST_F(OwnDistancesTest, AskForMoreUntilOneOfAnotherEmbeddingIsFound) {
  std::vector<ReferenceRecord> records = MakeReferences("math", 0, 200);
  for (int i = 0; i < 150; ++i) records[i].embedding = records[i % 3].embedding;  // Three prompts, fifty times each.
  Add(records);
  ExpectTheNaiveDistances();
}

TEST_F(OwnDistancesTest, OfOneReferenceThereAreNone) {
  Add(MakeReferences("math", 1, 2));
  EXPECT_EQ(Quantile(0.95), std::nullopt);
  Add(MakeReferences("math", 2, 3));
  EXPECT_TRUE(Quantile(0.95).has_value());
  Erase({held_.back().id});
  EXPECT_EQ(Quantile(0.95), std::nullopt);
}

TEST_F(OwnDistancesTest, QuantilesOutsideTheirRangeAndUnknownCollectionsAreRefused) {
  Add(MakeReferences("math", 0, 5));
  for (const double wrong : {0.0, -0.5, 1.01, std::nan("")}) {
    EXPECT_TRUE(absl::IsInvalidArgument(catalog_->OwnDistanceQuantile("math", false, wrong).status())) << wrong;
  }
  EXPECT_TRUE(absl::IsNotFound(catalog_->OwnDistanceQuantile("nowhere", false, 0.5).status()));
}

}  // namespace
}  // namespace c3po
