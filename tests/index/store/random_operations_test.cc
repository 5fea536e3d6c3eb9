// Random operations on every store, held to a model of plain maps, and to somebody who follows the changes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "absl/strings/match.h"
#include "index/store/reference_store.h"
#include "tests/index/store/any_store.h"
#include "tests/index/store/store_follower.h"

namespace c3po {
namespace {

// What a store is to do, in memory.
class ModelStore {
 public:
  std::vector<AddOutcome> Add(const std::vector<ReferenceRecord>& records) {
    std::vector<AddOutcome> outcomes;
    bool changed = false;
    for (const ReferenceRecord& record : records) {
      outcomes.push_back(AddOne(record));
      changed = changed || outcomes.back() != AddOutcome::kDuplicate;
    }
    generation += changed;
    return outcomes;
  }
  int64_t Delete(const std::vector<std::string>& ids) {
    int64_t gone = 0;
    for (const std::string& id : ids) {
      const auto found = Find(id);
      if (found == records.end()) continue;
      ForgetArtifactsOf(*found);
      records.erase(found);
      ++gone;
    }
    generation += gone > 0;
    return gone;
  }
  int64_t DeleteCollection(const std::string& collection) {
    const auto gone = static_cast<int64_t>(
        std::erase_if(records, [&](const ReferenceRecord& record) { return record.collection == collection; }));
    const auto removed = std::erase_if(artifacts, [&](const auto& each) { return each.first.first == collection; });
    generation += gone > 0 || removed > 0;
    return gone;
  }
  void Put(const std::vector<Artifact>& put) {
    bool changed = false;
    for (const Artifact& each : put) {
      const StoreFollower::ArtifactName name = {each.collection, each.name};
      if (each.value.empty()) {
        changed = artifacts.erase(name) > 0 || changed;
      } else {
        artifacts[name] = each.value;
        changed = true;
      }
    }
    generation += changed;
  }

  std::vector<ReferenceRecord> records;  // In the order of insertion.
  std::map<StoreFollower::ArtifactName, std::string> artifacts;
  int64_t generation = 0;

 private:
  std::vector<ReferenceRecord>::iterator Find(const std::string& id) {
    return std::find_if(records.begin(), records.end(), [&](const ReferenceRecord& record) { return record.id == id; });
  }
  void ForgetArtifactsOf(const ReferenceRecord& record) {
    std::erase_if(artifacts, [&](const auto& each) {
      return each.first.first == record.collection &&
             absl::StartsWith(each.first.second, "reference/" + record.id + "/");
    });
  }
  AddOutcome AddOne(const ReferenceRecord& record) {
    const auto found = Find(record.id);
    if (found == records.end()) {
      records.push_back(record);
      return AddOutcome::kInserted;
    }
    const ReferenceSample &old = found->sample, &now = record.sample;
    const bool same_makers =
        found->model_digest == record.model_digest && found->embedder_digest == record.embedder_digest;
    const bool same_content = now.id.empty() || (old.prompt == now.prompt && old.answer == now.answer &&
                                                 old.choices == now.choices && old.metadata == now.metadata);
    if (same_makers && same_content) return AddOutcome::kDuplicate;
    if (!same_content) ForgetArtifactsOf(record);
    *found = record;
    return AddOutcome::kReplaced;
  }
};

class RandomOperationsTest : public AnyStoreTest {
 protected:
  int Below(int end) { return static_cast<int>(random_() % static_cast<uint32_t>(end)); }
  std::string SomeCollection() { return absl::StrCat("collection-", Below(3)); }
  // Few ids, so that they meet; some are the sample's own, under which other contents come.
  ReferenceRecord SomeRecord() {
    const int number = Below(40);
    ReferenceRecord record = MakeReference(SomeCollection(), number);
    if (number % 4 == 0) {
      record.sample.id = absl::StrCat("own.", number);
      record.sample.metadata["version"] = absl::StrCat(Below(2));
      record.id = ReferenceId(record.collection, record.sample);
    }
    if (Below(4) == 0) record.model_digest = "model-b";
    return record;
  }
  std::vector<std::string> SomeIds() {
    std::vector<std::string> ids;
    for (int i = Below(5); i >= 0; --i) ids.push_back(SomeRecord().id);
    return ids;
  }
  Artifact SomeArtifact() {
    const ReferenceRecord record = SomeRecord();
    const std::string name =
        Below(2) == 0 ? absl::StrCat("reference/", record.id, "/shift") : absl::StrCat("prior-", Below(3));
    return {record.collection, name, Below(3) == 0 ? "" : absl::StrCat("value ", random_(), std::string(1, '\0'))};
  }

  void OneOperation() {
    const int kind = Below(20);
    if (kind < 9) {
      std::vector<ReferenceRecord> records;
      for (int i = Below(6); i >= 0; --i) records.push_back(SomeRecord());
      const auto outcomes = store_->Add(records);
      ASSERT_TRUE(outcomes.ok()) << outcomes.status();
      ASSERT_EQ(*outcomes, model_.Add(records));
    } else if (kind < 14) {
      const std::vector<std::string> ids = SomeIds();
      ASSERT_EQ(*store_->Delete(ids), model_.Delete(ids));
    } else if (kind == 14) {
      const std::string collection = SomeCollection();
      ASSERT_EQ(*store_->DeleteCollection(collection), model_.DeleteCollection(collection));
    } else {
      std::vector<Artifact> artifacts;
      for (int i = Below(4); i >= 0; --i) artifacts.push_back(SomeArtifact());
      ASSERT_TRUE(store_->PutArtifacts(artifacts).ok());
      model_.Put(artifacts);
    }
    ASSERT_EQ(store_->generation(), model_.generation);
  }

  void CompareAll() {
    std::vector<std::string> ids, texts;
    for (const ReferenceRecord& record : model_.records) ids.push_back(record.id), texts.push_back(TextOf(record));
    std::vector<std::string> stored;
    ASSERT_TRUE(store_
                    ->ForEach([&](ReferenceRecord record) {
                      stored.push_back(TextOf(record));
                      return absl::OkStatus();
                    })
                    .ok());
    ASSERT_EQ(stored, texts);
    const auto many = store_->GetMany(ids);
    ASSERT_TRUE(many.ok()) << many.status();
    ASSERT_EQ(many->size(), ids.size());
    std::sort(ids.begin(), ids.end());
    const auto listed = store_->List("", "", 1000);
    ASSERT_TRUE(listed.ok()) << listed.status();
    ASSERT_EQ(listed->size(), ids.size());
    for (size_t i = 0; i < ids.size(); ++i) ASSERT_EQ((*listed)[i].id, ids[i]);
    std::map<StoreFollower::ArtifactName, std::string> artifacts;
    for (int i = 0; i < 3; ++i) {
      const auto stored_artifacts = store_->Artifacts(absl::StrCat("collection-", i), "");
      ASSERT_TRUE(stored_artifacts.ok()) << stored_artifacts.status();
      for (const Artifact& each : *stored_artifacts) {
        artifacts[{each.collection, each.name}] = each.value;
      }
    }
    ASSERT_EQ(artifacts, model_.artifacts);
    int64_t counted = 0;
    const auto stats = store_->Stats("model-b", kEmbedderDigest);
    ASSERT_TRUE(stats.ok()) << stats.status();
    for (const CollectionStats& each : *stats) counted += each.usable;
    ASSERT_EQ(counted, std::count_if(model_.records.begin(), model_.records.end(),
                                     [](const ReferenceRecord& record) { return record.model_digest == "model-b"; }));
  }

  // Nothing is left to follow: he holds what the model does.
  void CompareFollower(const StoreFollower& follower) {
    std::map<std::string, std::string> texts;
    for (const ReferenceRecord& record : model_.records) texts[record.id] = TextOf(record);
    ASSERT_EQ(follower.generation, model_.generation);
    ASSERT_EQ(follower.records, texts);
    ASSERT_EQ(follower.artifacts, model_.artifacts);
  }

  std::mt19937 random_{20261130};
  ModelStore model_;
};
C3PO_TEST_EVERY_STORE(RandomOperationsTest);

TEST_P(RandomOperationsTest, TheStoreIsWhatAModelOfMapsIsAndWhoFollowsItIsToo) {
  StoreOptions options;
  options.erasures_max = 40;
  Reopen(options);
  StoreFollower close, slow;  // One that nearly keeps up, and one that falls behind what is remembered.
  for (int round = 0; round < 400; ++round) {
    SCOPED_TRACE(absl::StrCat("round ", round));
    ASSERT_NO_FATAL_FAILURE(OneOperation());
    if (round % 10 == 9) {
      ASSERT_NO_FATAL_FAILURE(CompareAll());
    }
    if (round % 60 == 59) Reopen(options);
    if (Below(3) == 0) {
      const auto page = store_->ChangesSince(close.generation, 1 + Below(12));  // The next page sees later changes.
      ASSERT_TRUE(page.ok()) << page.status();
      close.Take(*page);
      if (!page->more) {
        ASSERT_NO_FATAL_FAILURE(CompareFollower(close));
      }
    }
    if (round % 100 == 99) {
      ASSERT_TRUE(slow.CatchUp(*store_, 1 + Below(30)).ok());
      ASSERT_NO_FATAL_FAILURE(CompareFollower(slow));
    }
  }
  ASSERT_TRUE(close.CatchUp(*store_, 5).ok());
  ASSERT_NO_FATAL_FAILURE(CompareFollower(close));
  EXPECT_GT(close.pages, 50);
  EXPECT_GT(slow.starts, 0) << "the erasures that it missed are forgotten";
  EXPECT_LT(close.starts, close.pages / 2);
}

}  // namespace
}  // namespace c3po
