// Rows that are not as they were written, in every store.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "index/store/reference_store.h"
#include "tests/index/store/any_store.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class DamagedRowsTest : public AnyStoreTest {
 protected:
  void SetUp() override {
    AnyStoreTest::SetUp();
    records_ = MakeReferences("math", 0, 20);
    const auto others = MakeReferences("law", 20, 30);
    records_.insert(records_.end(), others.begin(), others.end());
    ASSERT_TRUE(store_->Add(records_).ok());
    for (const ReferenceRecord& record : records_) {
      if (record.collection == "math")
        artifacts_.push_back({"math", "reference/" + record.id + "/shift", "shift of it"});
    }
    artifacts_.push_back({"law", "prior", std::string(9000, 'p')});
    artifacts_.push_back({"law", "profile", "k = 3"});
    ASSERT_TRUE(store_->PutArtifacts(artifacts_).ok());
  }
  std::set<std::string> Served() {
    const std::vector<std::string> ids = AllIds();
    return {ids.begin(), ids.end()};
  }

  std::vector<ReferenceRecord> records_;
  std::vector<Artifact> artifacts_;
};
C3PO_TEST_EVERY_STORE(DamagedRowsTest);

TEST_P(DamagedRowsTest, ADamagedRowIsLeftOutNamedAndWrittenAnewByTheNextImport) {
  const std::string id = records_[3].id;
  RunSql("UPDATE reference SET answer = 'another' WHERE id = '" + id + "'");
  Reopen();
  EXPECT_THAT(store_->Damaged(), IsEmpty()) << "references are looked at when they are read";
  EXPECT_EQ(Served().size(), records_.size() - 1);
  ASSERT_THAT(store_->Damaged(), SizeIs(1));
  EXPECT_EQ(store_->Damaged()[0].kind, DamagedRow::Kind::kReference);
  EXPECT_EQ(store_->Damaged()[0].collection, "math");
  EXPECT_EQ(store_->Damaged()[0].name, id);
  EXPECT_THAT(store_->Damaged()[0].problem, HasSubstr("checksum; write it anew"));
  EXPECT_THAT(*store_->GetMany({id, records_[4].id}), SizeIs(1));
  const absl::Status status = store_->Get(id).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("reference \"" + id + "\""));
  EXPECT_EQ(store_->Stats(kModelDigest, kEmbedderDigest)->back().references, 19);

  EXPECT_THAT(*store_->Add({records_[3]}), ElementsAre(AddOutcome::kReplaced));
  EXPECT_THAT(store_->Damaged(), IsEmpty());
  EXPECT_EQ(TextOf(*store_->Get(id)), TextOf(records_[3]));
  EXPECT_THAT(*store_->Artifacts("math", "reference/" + id), SizeIs(1)) << "its content is the same";
  EXPECT_THAT(*store_->Add({records_[3]}), ElementsAre(AddOutcome::kDuplicate));
}

TEST_P(DamagedRowsTest, DeletingPutsDamageRight) {
  RunSql("UPDATE reference SET pathway = embedding WHERE collection = 'law'");
  Reopen();
  EXPECT_EQ(Served().size(), 20u);
  EXPECT_THAT(store_->Damaged(), SizeIs(10));
  ASSERT_THAT(*store_->Stats(kModelDigest, kEmbedderDigest), SizeIs(1)) << "nothing is left of the other";
  EXPECT_EQ(*store_->Delete({records_[20].id}), 1);
  EXPECT_THAT(store_->Damaged(), SizeIs(9));
  EXPECT_EQ(*store_->DeleteCollection("law"), 9);
  EXPECT_THAT(store_->Damaged(), IsEmpty());
}

TEST_P(DamagedRowsTest, ListPassesOverDamagedRowsAndStillFillsItsPages) {
  RunSql("UPDATE reference SET successful = 1 - successful WHERE sequence % 3 <> 0");
  Reopen();
  for (const int limit : {1, 2, 5, 100}) {
    std::set<std::string> listed;
    std::string after;
    while (true) {
      const auto page = store_->List("", after, limit);
      ASSERT_TRUE(page.ok()) << page.status();
      for (const ReferenceRecord& record : *page) EXPECT_TRUE(listed.insert(record.id).second);
      if (page->size() < static_cast<size_t>(limit)) break;
      after = page->back().id;
    }
    EXPECT_EQ(listed, Served()) << limit;
    EXPECT_EQ(listed.size(), 10u);
  }
}

TEST_P(DamagedRowsTest, AnArtifactThatDoesNotMatchItsChecksumIsLeftOutUntilItIsPutAgain) {
  RunSql("UPDATE artifact SET value = checksum WHERE name = 'profile'");
  Reopen();
  EXPECT_THAT(*store_->Artifacts("law", ""), SizeIs(1));
  EXPECT_THAT(*store_->CollectionsWith("profile"), IsEmpty());
  ASSERT_THAT(store_->Damaged(), SizeIs(1));
  EXPECT_EQ(store_->Damaged()[0].kind, DamagedRow::Kind::kArtifact);
  EXPECT_EQ(store_->Damaged()[0].name, "profile");
  ASSERT_TRUE(store_->PutArtifacts({{"law", "profile", "k = 5"}}).ok());
  EXPECT_THAT(store_->Damaged(), IsEmpty());
  EXPECT_THAT(*store_->CollectionsWith("profile"), ElementsAre("law"));
}

TEST_P(DamagedRowsTest, ChangesLeaveDamagedRowsOut) {
  RunSql("UPDATE reference SET answer = 'another' WHERE id = '" + records_[3].id + "'");
  Reopen();
  const auto changes = store_->ChangesSince(0, 1000);
  ASSERT_TRUE(changes.ok()) << changes.status();
  EXPECT_EQ(changes->records.size(), records_.size() - 1);
  EXPECT_EQ(changes->artifacts.size(), artifacts_.size());
  EXPECT_THAT(store_->Damaged(), SizeIs(1));
}

}  // namespace
}  // namespace c3po
