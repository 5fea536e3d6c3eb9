// What every store does, whichever database holds it.
#include "index/store/reference_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/index/store/any_store.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

void ExpectEqual(const ReferenceRecord& a, const ReferenceRecord& b) { EXPECT_EQ(TextOf(a), TextOf(b)); }

std::vector<std::string> Ids(const std::vector<ReferenceRecord>& records) {
  std::vector<std::string> ids;
  for (const ReferenceRecord& record : records) ids.push_back(record.id);
  return ids;
}

class ReferenceStoreTest : public AnyStoreTest {};
C3PO_TEST_EVERY_STORE(ReferenceStoreTest);

TEST_P(ReferenceStoreTest, ReopenedStoreHoldsEveryFieldOfEveryRecordInInsertionOrder) {
  std::vector<ReferenceRecord> records = MakeReferences("math", 0, 20);
  records[3].sample.choices.clear();
  records[3].sample.metadata.clear();
  records[3].sample.prompt = absl::StrCat("zero ", std::string(1, '\0'), " byte, tab \t and emoji \xf0\x9f\x98\x80");
  records[3].id = ReferenceId("math", records[3].sample);
  auto outcomes = store_->Add(records);
  ASSERT_TRUE(outcomes.ok()) << outcomes.status();
  EXPECT_EQ(*outcomes, std::vector<AddOutcome>(20, AddOutcome::kInserted));
  EXPECT_EQ(store_->generation(), 1);

  Reopen();
  EXPECT_EQ(store_->generation(), 1);
  size_t next = 0;
  const absl::Status status = store_->ForEach([&](ReferenceRecord record) {
    ExpectEqual(record, records.at(next++));
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(next, records.size());
  ExpectEqual(*store_->Get(records[7].id), records[7]);
  EXPECT_THAT(Ids(*store_->GetMany({records[9].id, "unknown", records[1].id})),
              ElementsAre(records[9].id, records[1].id));
}

TEST_P(ReferenceStoreTest, UnknownIdIsNotFoundAndNamed) {
  const absl::Status status = store_->Get("0123").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"0123\""));
}

TEST_P(ReferenceStoreTest, SameSampleIsStoredOnceAndRefreshedWhenTheModelOrTheEmbedderChanged) {
  const std::vector<ReferenceRecord> records = MakeReferences("math", 0, 3);
  ASSERT_TRUE(store_->Add(records).ok());
  EXPECT_THAT(*store_->Add(records),
              ElementsAre(AddOutcome::kDuplicate, AddOutcome::kDuplicate, AddOutcome::kDuplicate));
  EXPECT_EQ(store_->generation(), 1) << "nothing changed";

  ReferenceRecord other_model = records[0];
  other_model.model_digest = "model-b";
  other_model.successful = !other_model.successful;
  other_model.embedding = RandomUnitVector(*std::make_unique<std::mt19937>(5), 16);
  ReferenceRecord other_embedder = records[1];
  other_embedder.embedder_digest = "embedder-b";
  EXPECT_THAT(*store_->Add({other_model, other_embedder, records[2], MakeReference("math", 3), other_model}),
              ElementsAre(AddOutcome::kReplaced, AddOutcome::kReplaced, AddOutcome::kDuplicate, AddOutcome::kInserted,
                          AddOutcome::kDuplicate));
  EXPECT_EQ(store_->generation(), 2);
  ExpectEqual(*store_->Get(other_model.id), other_model);
  EXPECT_THAT(AllIds(), ElementsAre(records[0].id, records[1].id, records[2].id, MakeReference("math", 3).id));
}

TEST_P(ReferenceStoreTest, BatchWithOneInvalidRecordAddsNothingAndNamesTheField) {
  std::vector<ReferenceRecord> records = MakeReferences("math", 0, 5);
  records[3].embedding[2] = std::numeric_limits<float>::infinity();
  const absl::Status status = store_->Add(records).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("records[3].embedding[2]: not finite"));
  EXPECT_THAT(AllIds(), IsEmpty());
  EXPECT_EQ(store_->generation(), 0);
}

TEST_P(ReferenceStoreTest, ListPagesThroughACollectionOnceEachEvenWhenTheCursorsRowIsDeleted) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 25)).ok());
  ASSERT_TRUE(store_->Add(MakeReferences("other", 0, 5)).ok());
  std::vector<std::string> seen;
  std::string cursor;
  while (true) {
    auto page = store_->List("math", cursor, 7);
    ASSERT_TRUE(page.ok()) << page.status();
    for (const ReferenceRecord& record : *page) seen.push_back(record.id);
    if (page->size() < 7) break;
    cursor = page->back().id;
    EXPECT_EQ(*store_->Delete({cursor}), 1);
  }
  std::vector<std::string> expected = Ids(MakeReferences("math", 0, 25));
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(seen, expected);
  EXPECT_EQ(store_->List("", "", 1000)->size(), 25u - 3 + 5);
  EXPECT_THAT(*store_->List("absent", "", 10), IsEmpty());
  EXPECT_EQ(store_->List("math", "", 0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(ReferenceStoreTest, DeleteCountsWhatIsGone) {
  const std::vector<ReferenceRecord> records = MakeReferences("math", 0, 5);
  ASSERT_TRUE(store_->Add(records).ok());
  ASSERT_TRUE(store_->Add(MakeReferences("other", 0, 3)).ok());
  EXPECT_EQ(*store_->Delete({records[1].id, "unknown", records[1].id, records[2].id}), 2);
  EXPECT_EQ(*store_->Delete({"unknown"}), 0);
  EXPECT_EQ(store_->generation(), 3);
  EXPECT_EQ(*store_->DeleteCollection("math"), 3);
  EXPECT_EQ(*store_->DeleteCollection("math"), 0);
  EXPECT_EQ(store_->generation(), 4);
  EXPECT_EQ(AllIds(), Ids(MakeReferences("other", 0, 3)));
}

TEST_P(ReferenceStoreTest, StatsCountPerCollection) {
  std::vector<ReferenceRecord> records = MakeReferences("math", 0, 6);  // 0 and 3 are not successful.
  records[4].model_digest = "model-b";
  records[5].embedder_digest = "embedder-b";
  ASSERT_TRUE(store_->Add(records).ok());
  ASSERT_TRUE(store_->Add(MakeReferences("art", 0, 2)).ok());
  auto stats = store_->Stats(kModelDigest, kEmbedderDigest);
  ASSERT_TRUE(stats.ok()) << stats.status();
  ASSERT_EQ(stats->size(), 2u);
  EXPECT_EQ((*stats)[0].collection, "art");
  EXPECT_EQ((*stats)[0].references, 2);
  EXPECT_EQ((*stats)[0].successful, 1);
  EXPECT_EQ((*stats)[0].usable, 2);
  EXPECT_EQ((*stats)[1].collection, "math");
  EXPECT_EQ((*stats)[1].references, 6);
  EXPECT_EQ((*stats)[1].successful, 4);
  EXPECT_EQ((*stats)[1].usable, 4);
}

TEST_P(ReferenceStoreTest, ForEachStopsAtTheCallbacksError) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 5)).ok());
  int calls = 0;
  const absl::Status status = store_->ForEach(
      [&](ReferenceRecord) { return ++calls == 3 ? absl::CancelledError("enough") : absl::OkStatus(); });
  EXPECT_EQ(status, absl::CancelledError("enough"));
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(*store_->DeleteCollection("math"), 5) << "the store goes on working";
}

TEST_P(ReferenceStoreTest, ArtifactsLastUntilReplacedRemovedOrDeletedWithTheirOwner) {
  const std::vector<ReferenceRecord> records = MakeReferences("math", 0, 2);
  ASSERT_TRUE(store_->Add(records).ok());
  const int64_t generation = store_->generation();
  const std::string binary("a\0b\xff", 4);
  const auto name = [&](int i) { return "reference/" + records[i].id + "/shift"; };
  ASSERT_TRUE(store_
                  ->PutArtifacts({{"math", "prior", "old"},
                                  {"math", "prior", binary},
                                  {"math", name(0), "s0"},
                                  {"math", name(1), "s1"},
                                  {"other", "prior", "kept"}})
                  .ok());
  EXPECT_EQ(store_->generation(), generation + 1);
  Reopen();
  ASSERT_EQ(store_->Artifacts("math", "")->size(), 3u);
  EXPECT_EQ((*store_->Artifacts("math", "pri"))[0].value, binary);
  EXPECT_EQ(store_->Artifacts("math", "reference/")->size(), 2u);
  const std::string end = name(1).substr(name(1).rfind('/'));
  EXPECT_EQ(store_->Artifacts("math", "reference/", end)->size(), 2u);
  EXPECT_EQ(store_->Artifacts("math", "", name(1))->size(), 1u);
  EXPECT_TRUE(store_->Artifacts("math", "reference/", "longer than" + name(1))->empty());
  EXPECT_EQ(*store_->Delete({records[0].id}), 1);
  ASSERT_EQ(store_->Artifacts("math", "reference/")->size(), 1u);
  EXPECT_EQ((*store_->Artifacts("math", "reference/"))[0].name, name(1));
  ASSERT_TRUE(store_->PutArtifacts({{"math", "prior", ""}}).ok());
  EXPECT_TRUE(store_->Artifacts("math", "prior")->empty());
  EXPECT_EQ(*store_->DeleteCollection("math"), 1);
  EXPECT_TRUE(store_->Artifacts("math", "")->empty());
  EXPECT_EQ(store_->Artifacts("other", "")->size(), 1u);
}

TEST_P(ReferenceStoreTest, OneWrongArtifactStoresNone) {
  const absl::Status status = store_->PutArtifacts({{"math", "prior", "x"}, {"math", "", "y"}});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("artifacts[1].name"));
  EXPECT_TRUE(store_->Artifacts("math", "")->empty());
}

TEST_P(ReferenceStoreTest, ThreadsAddReadAndDeleteTogether) {
  constexpr int kThreads = 4, kBatches = 10, kBatch = 5;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const std::string collection = absl::StrCat("collection-", t);
      for (int batch = 0; batch < kBatches; ++batch) {
        const auto records = MakeReferences(collection, batch * kBatch, (batch + 1) * kBatch);
        EXPECT_TRUE(store_->Add(records).ok());
        EXPECT_TRUE(store_->Get(records[0].id).ok());
        EXPECT_EQ(*store_->Delete({records[1].id}), 1);
        EXPECT_TRUE(store_->Stats(kModelDigest, kEmbedderDigest).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store_->generation(), kThreads * kBatches * 2);
  EXPECT_EQ(AllIds().size(), static_cast<size_t>(kThreads * kBatches * (kBatch - 1)));
}

TEST_P(ReferenceStoreTest, AnIdThatTheSampleBroughtTakesOtherContentInAndForgetsWhatWasLearnedOfTheOld) {
  ReferenceRecord record = MakeReference("math", 0);
  record.sample.id = "q.1";
  record.id = ReferenceId("math", record.sample);
  ReferenceRecord neighbor = MakeReference("math", 1);
  ASSERT_TRUE(store_->Add({record, neighbor}).ok());
  ASSERT_TRUE(store_
                  ->PutArtifacts({{"math", "reference/math:q.1/shift", "old"},
                                  {"math", absl::StrCat("reference/", neighbor.id, "/shift"), "kept"},
                                  {"math", "prior", "kept"}})
                  .ok());
  EXPECT_THAT(*store_->Add({record}), ElementsAre(AddOutcome::kDuplicate));

  ReferenceRecord other_model = record;
  other_model.model_digest = "model-b";
  EXPECT_THAT(*store_->Add({other_model}), ElementsAre(AddOutcome::kReplaced));
  EXPECT_EQ(store_->Artifacts("math", "")->size(), 3u);

  for (const char* field : {"prompt", "answer", "choices", "metadata"}) {
    const std::string name = field;
    if (name == "prompt") other_model.sample.prompt = "Question: another?\nAnswer:";
    if (name == "answer") std::swap(other_model.sample.answer, other_model.sample.choices[0]);
    if (name == "choices") other_model.sample.choices = {" no", other_model.sample.answer};
    if (name == "answer") other_model.sample.choices = {other_model.sample.answer, " 17"};
    if (name == "metadata") other_model.sample.metadata["more"] = "text";
    EXPECT_THAT(*store_->Add({other_model}), ElementsAre(AddOutcome::kReplaced)) << field;
    ExpectEqual(*store_->Get("math:q.1"), other_model);
    EXPECT_THAT(*store_->Add({other_model}), ElementsAre(AddOutcome::kDuplicate)) << field;
  }
  EXPECT_EQ(store_->Artifacts("math", "")->size(), 2u);
  EXPECT_EQ(store_->Artifacts("math", "reference/math:q.1/")->size(), 0u);
  Reopen();
  ExpectEqual(*store_->Get("math:q.1"), other_model);
  EXPECT_EQ(store_->Get("math:q.1")->sample.id, "q.1");
  EXPECT_EQ(store_->Get(neighbor.id)->sample.id, "");
}

}  // namespace
}  // namespace c3po
