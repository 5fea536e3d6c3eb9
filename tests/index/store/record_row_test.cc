// Rows as they lie in a store's file: the format does not change by accident, and damage is not decoded.
#include "index/store/record_row.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "absl/strings/escaping.h"
#include "index/store/artifact_row.h"
#include "index/store/damaged_rows.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

ReferenceRecord TwelveAsAWord() {
  ReferenceRecord record;
  record.id = "0123456789abcdef";
  record.collection = "set";
  record.sample = {"One and one?", " zw\u00f6lf", {" 2", " zw\u00f6lf"}, {{"source", "\"a\""}, {"line", "7"}}, ""};
  record.successful = true;
  record.model_digest = kModelDigest;
  record.embedder_digest = kEmbedderDigest;
  record.embedding = {0.6f, 0.8f};
  record.pathway = Pathway(1, 2);
  record.pathway.weights = {0.25f, 0.75f};
  record.created_unix_seconds = 1700000000;
  return record;
}

// Computed apart from this code, by Python's hashlib over the documented bytes: each value after its length as <Q,
// integers as <q, numbers as <f, choices and metadata as JSON.
TEST(RecordRow, ChecksumIsTheDigestOfTheDocumentedBytes) {
  const ReferenceRecord record = TwelveAsAWord();
  const EncodedRecord encoded(record);
  EXPECT_EQ(absl::BytesToHexString(encoded.row().Checksum()),
            "bf9a927445fd8fadc65a1eb0df472f2ae786c05df2e5b497dbb164867333dbac");
  EXPECT_EQ(absl::BytesToHexString(ChecksumOf({"set", "profile", "k = 4"})),
            "b9988a0d4690dc3cc790071ba0287f132f8ba00e890ab034e44c7224a77c303d");
}

TEST(RecordRow, EveryValueIsCoveredByTheChecksum) {
  const ReferenceRecord record = TwelveAsAWord();
  const EncodedRecord encoded(record);
  const std::string checksum = encoded.row().Checksum();
  ASSERT_TRUE(DecodeRecord(encoded.row(), checksum).ok());
  absl::string_view RecordRow::*const texts[] = {
      &RecordRow::id,        &RecordRow::collection, &RecordRow::prompt,       &RecordRow::answer,
      &RecordRow::choices,   &RecordRow::metadata,   &RecordRow::model_digest, &RecordRow::embedder_digest,
      &RecordRow::embedding, &RecordRow::pathway};
  int64_t RecordRow::*const numbers[] = {&RecordRow::successful, &RecordRow::pathway_layers,
                                         &RecordRow::pathway_experts, &RecordRow::created_unix_seconds};
  for (const auto text : texts) {
    RecordRow row = encoded.row();
    std::string turned(row.*text);
    turned[0] = static_cast<char>(turned[0] ^ 1);
    row.*text = turned;
    EXPECT_TRUE(absl::IsDataLoss(DecodeRecord(row, checksum).status())) << turned;
  }
  for (const auto number : numbers) {
    RecordRow row = encoded.row();
    row.*number ^= 1;
    EXPECT_TRUE(absl::IsDataLoss(DecodeRecord(row, checksum).status())) << row.*number;
  }
  RecordRow moved = encoded.row();  // The same bytes, cut elsewhere.
  moved.prompt = absl::string_view();
  const std::string both = record.sample.prompt + record.sample.answer;
  moved.answer = both;
  EXPECT_TRUE(absl::IsDataLoss(DecodeRecord(moved, checksum).status()));
  EXPECT_TRUE(absl::IsDataLoss(DecodeRecord(encoded.row(), "").status()));
}

// By whoever wrote it: the checksum fits.
TEST(RecordRow, APathwayOfAnotherShapeIsNotDecoded) {
  const ReferenceRecord record = TwelveAsAWord();
  const EncodedRecord encoded(record);
  for (const int64_t layers : {int64_t{0}, int64_t{-1}, int64_t{2}, int64_t{1} << 62}) {
    RecordRow row = encoded.row();
    row.pathway_layers = layers;
    const auto decoded = DecodeRecord(row, row.Checksum());
    ASSERT_TRUE(absl::IsDataLoss(decoded.status())) << layers;
    EXPECT_THAT(std::string(decoded.status().message()), HasSubstr("has 2 weights"));
  }
}

TEST(RecordRow, WhatAddingDoesDependsOnMakersContentAndWhoseTheIdIs) {
  const ReferenceRecord record = TwelveAsAWord();
  ReferenceRecord by_another_model = record, other_answer = record, other_metadata = record;
  by_another_model.model_digest = "model-b";
  other_answer.sample.answer = " 2";
  other_metadata.sample.metadata["line"] = "8";
  const EncodedRecord added(record);
  const auto decide = [&](bool own_id, const ReferenceRecord* stored, bool damaged = false) {
    std::optional<EncodedRecord> row;
    if (stored != nullptr) row.emplace(*stored);
    return DecideAdd(added.row(), own_id, stored != nullptr, row && !damaged ? &row->row() : nullptr);
  };
  for (const bool own_id : {false, true}) {
    EXPECT_EQ(decide(own_id, nullptr).outcome, AddOutcome::kInserted);
    EXPECT_FALSE(decide(own_id, nullptr).forgets_artifacts);
    EXPECT_EQ(decide(own_id, &record).outcome, AddOutcome::kDuplicate);
    EXPECT_EQ(decide(own_id, &by_another_model).outcome, AddOutcome::kReplaced);
    EXPECT_FALSE(decide(own_id, &by_another_model).forgets_artifacts);
    EXPECT_EQ(decide(own_id, &record, /*damaged=*/true).outcome, AddOutcome::kReplaced);
    // Of a damaged row nothing is known: what belongs to an id that the sample brought may be of another content.
    EXPECT_EQ(decide(own_id, &record, /*damaged=*/true).forgets_artifacts, own_id);
    for (const ReferenceRecord* other : {&other_answer, &other_metadata}) {
      EXPECT_EQ(decide(own_id, other).outcome, own_id ? AddOutcome::kReplaced : AddOutcome::kDuplicate);
      EXPECT_EQ(decide(own_id, other).forgets_artifacts, own_id);
    }
  }
}

TEST(DamagedRows, AfterAChangeOnlyWhatIsStillDamagedIsListedAndAllWhereThatIsNotKnown) {
  DamagedRows rows;
  rows.Note(DamagedRow::Kind::kArtifact, "set", "profile", "it does not match its checksum");
  rows.Note(DamagedRow::Kind::kReference, "set", "one", "it does not match its checksum");
  rows.Note(DamagedRow::Kind::kReference, "set", "two", "it does not match its checksum");
  const absl::Status busy = absl::UnavailableError("busy");
  EXPECT_EQ(rows.LookAgain([&](const DamagedRow& row) { return row.name == "two" ? busy : absl::OkStatus(); }), busy);
  EXPECT_EQ(rows.List().size(), 3U);
  EXPECT_TRUE(absl::IsDataLoss(rows.CheckReference("PATH", "one")));
  EXPECT_TRUE(rows.CheckReference("PATH", "profile").ok()) << "an artifact is no reference";
  const auto look = [&](const DamagedRow& row) {
    if (row.name == "two") rows.Note(row.kind, row.collection, row.name, "still");
    return absl::OkStatus();
  };
  EXPECT_TRUE(rows.LookAgain(look).ok());
  ASSERT_EQ(rows.List().size(), 1U);
  EXPECT_EQ(rows.List()[0].name, "two");
  EXPECT_THAT(rows.List()[0].problem, HasSubstr("still; write it anew"));
}

}  // namespace
}  // namespace c3po
