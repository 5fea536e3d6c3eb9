// What is SQLite's alone: files, their locks and the versions of their schema.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "index/store/sqlite/sqlite_reference_store.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

// Runs SQL on a store's file from outside.
void RunSql(const std::string& path, const std::string& sql) {
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &db), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(db);
  sqlite3_close(db);
}

class SqliteStoreTest : public ::testing::Test {
 protected:
  void SetUp() override { Reopen(); }
  void Reopen() {
    store_.reset();
    auto store = SqliteReferenceStore::Open(path_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  size_t Count() {
    size_t count = 0;
    const absl::Status status = store_->ForEach([&](ReferenceRecord) {
      ++count;
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
    return count;
  }

  ScratchFolder folder_;
  const std::string path_ = folder_.File("references.db");
  std::unique_ptr<SqliteReferenceStore> store_;
};

TEST_F(SqliteStoreTest, SecondServerIsToldThatTheStoreIsLocked) {
  const absl::Status status = SqliteReferenceStore::Open(path_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "store " + path_ + " is locked by another process");
  std::filesystem::create_symlink(path_, folder_.File("link.db"));
  EXPECT_EQ(SqliteReferenceStore::Open(folder_.File("link.db")).status().code(), absl::StatusCode::kFailedPrecondition);
  store_.reset();
  EXPECT_TRUE(SqliteReferenceStore::Open(path_).ok());
}

TEST_F(SqliteStoreTest, FilesThatAreNoStoreAreRefusedByNameAndLeftAlone) {
  const std::string text = folder_.File("notes.txt");
  std::ofstream(text) << std::string(5000, 'x');
  EXPECT_EQ(SqliteReferenceStore::Open(text).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(SqliteReferenceStore::Open(text).status().message()), HasSubstr(text));
  EXPECT_EQ(std::filesystem::file_size(text), 5000u);

  const std::string foreign = folder_.File("foreign.db");
  RunSql(foreign, "CREATE TABLE t (x); PRAGMA user_version = 1");
  const absl::Status status = SqliteReferenceStore::Open(foreign).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("another application"));

  EXPECT_EQ(SqliteReferenceStore::Open(folder_.path()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SqliteReferenceStore::Open(folder_.File("absent/store.db")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(SqliteReferenceStore::Open("").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SqliteStoreTest, SchemaOfAnotherVersionIsRefused) {
  store_.reset();
  RunSql(path_, "PRAGMA user_version = 5");
  const absl::Status status = SqliteReferenceStore::Open(path_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("schema version 5"));
}

TEST_F(SqliteStoreTest, FileOfVersion1GetsItsArtifactTableAndKeepsItsReferences) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 3)).ok());
  store_.reset();
  RunSql(path_,
         "DROP TABLE artifact; DROP TABLE erased; DROP INDEX reference_by_generation; "
         "ALTER TABLE reference DROP COLUMN generation; ALTER TABLE reference DROP COLUMN checksum; "
         "ALTER TABLE store_state DROP COLUMN stamp; ALTER TABLE store_state DROP COLUMN remembered_from; "
         "PRAGMA user_version = 1");
  Reopen();
  EXPECT_EQ(Count(), 3u);
  ASSERT_TRUE(store_->PutArtifacts({{"math", "prior", "x"}}).ok());
  EXPECT_EQ(store_->Artifacts("math", "")->size(), 1u);
}

TEST_F(SqliteStoreTest, EmptyFileBecomesAStore) {
  std::ofstream(folder_.File("empty.db")).close();
  auto store = SqliteReferenceStore::Open(folder_.File("empty.db"));
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_TRUE((*store)->Add(MakeReferences("math", 0, 2)).ok());
}

TEST_F(SqliteStoreTest, DamagedPagesAreDataLossNeverACrash) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 200)).ok());
  store_.reset();
  std::string good;
  {
    std::ifstream in(path_, std::ios::binary);
    good.assign(std::istreambuf_iterator<char>(in), {});
  }
  std::mt19937 random(20240711);
  int refused = 0;
  for (int round = 0; round < 60; ++round) {
    // A page overwritten with noise, or a file that was cut.
    std::string bad = good;
    if (round % 2 == 0) {
      const size_t page = random() % (bad.size() / 4096);
      for (size_t i = 0; i < 4096; ++i) bad[page * 4096 + i] = static_cast<char>(random());
    } else {
      bad.resize(1 + random() % (bad.size() - 1));
    }
    const std::string path = folder_.File("damaged.db");
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bad;
    auto store = SqliteReferenceStore::Open(path);
    absl::Status status = store.status();
    if (store.ok()) status = (*store)->ForEach([](ReferenceRecord) { return absl::OkStatus(); });
    if (status.ok()) continue;  // The noise fell on the bytes of a float or a text.
    ++refused;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
    EXPECT_TRUE(status.code() == absl::StatusCode::kDataLoss || status.code() == absl::StatusCode::kInvalidArgument)
        << status;
  }
  EXPECT_GE(refused, 50);
}

TEST_F(SqliteStoreTest, RowWithAWrongBlobIsDataLossThatNamesTheReference) {
  const ReferenceRecord record = MakeReference("math", 1);
  ASSERT_TRUE(store_->Add({record}).ok());
  for (const std::string change : {"pathway = x'00000000'", "embedding = x'0000c07f'", "embedding = x'00'",
                                   "choices = '[1'", "metadata = '[]'", "pathway_layers = -3", "pathway_layers = 0"}) {
    store_.reset();
    RunSql(path_, "CREATE TABLE saved AS SELECT * FROM reference; UPDATE reference SET " + change);
    Reopen();
    const absl::Status status = store_->Get(record.id).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << change;
    EXPECT_THAT(std::string(status.message()), HasSubstr(record.id)) << change;
    store_.reset();
    RunSql(path_, "DELETE FROM reference; INSERT INTO reference SELECT * FROM saved; DROP TABLE saved");
  }
}

}  // namespace
}  // namespace c3po
