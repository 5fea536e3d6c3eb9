// The file of an open store under other programs' hands.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "index/store/sqlite/sqlite_reference_store.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class StoreFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    store_ = SqliteReferenceStore::Open(path_).value();
    ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 50)).ok());
    EXPECT_TRUE(Looked().ok()) << Looked();
  }
  absl::Status Looked() {
    const absl::Status status = store_->CheckPlace();
    EXPECT_EQ(store_->fault(), status);
    return status;
  }
  // What was done is noticed and said, and nothing is written; `what` is in the message.
  void ExpectLost(const std::string& what) {
    const int64_t generation = store_->generation();
    for (const absl::Status& status :
         {Looked(), store_->Add({MakeReference("math", 1000)}).status(), store_->DeleteCollection("math").status(),
          store_->PutArtifacts({{"math", "profile", "k = 3"}})}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("store " + path_ + ": "));
      EXPECT_THAT(std::string(status.message()), HasSubstr(what));
    }
    EXPECT_EQ(store_->generation(), generation);
  }
  void ExpectSound() {
    EXPECT_TRUE(Looked().ok()) << Looked();
    const auto outcomes = store_->Add({MakeReference("math", 2000 + ++added_)});
    EXPECT_TRUE(outcomes.ok()) << outcomes.status();
    EXPECT_TRUE(Looked().ok()) << Looked();
  }
  // By another connection, as another program would.
  static void RunSql(const std::string& path, const std::string& sql) {
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open(path.c_str(), &db), SQLITE_OK);
    ASSERT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(db);
    sqlite3_close(db);
  }
  // Another file's contents into the open one: what `cp` does.
  void WriteOver(const std::string& from) {
    std::ifstream in(from, std::ios::binary);
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << in.rdbuf();
  }
  std::string Copy() {
    const std::string copy = folder_.File(absl::StrCat("copy-", ++copies_));
    auto backup = store_->StartBackup(copy).value();
    while (!*backup->Step(1000)) {
    }
    return copy;
  }

  ScratchFolder folder_;
  const std::string path_ = folder_.File("store.db");
  std::unique_ptr<SqliteReferenceStore> store_;
  int added_ = 0, copies_ = 0;
};

TEST_F(StoreFileTest, AHardLinkIsLockedToo) {
  fs::create_hard_link(path_, folder_.File("other.db"));
  const absl::Status status = SqliteReferenceStore::Open(folder_.File("other.db")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "store " + folder_.File("other.db") + " is locked by another process");
  ExpectSound();
  store_.reset();
  EXPECT_TRUE(SqliteReferenceStore::Open(folder_.File("other.db")).ok());
}

TEST_F(StoreFileTest, ADeletedStoreIsNoticedAndReadOn) {
  fs::remove(path_);
  ExpectLost("was deleted or moved");
  EXPECT_TRUE(store_->Get(MakeReference("math", 7).id).ok());
}

TEST_F(StoreFileTest, AReplacedStoreIsNoticedUntilItIsPutBack) {
  const std::string copy = Copy();
  fs::rename(path_, folder_.File("kept.db"));
  ExpectLost("was deleted or moved");
  fs::rename(copy, path_);
  ExpectLost("was replaced by another file");
  fs::rename(folder_.File("kept.db"), path_);
  ExpectSound();
}

TEST_F(StoreFileTest, ALogThatIsTakenAwayIsNoticed) {
  fs::remove(path_ + "-wal");
  ExpectLost("write-ahead log");
}

TEST_F(StoreFileTest, ACutStoreIsNoticedWhereverItIsCut) {
  const auto whole = fs::file_size(path_);
  for (const uintmax_t size : {whole - 1, whole / 2, uintmax_t{4096}, uintmax_t{50}, uintmax_t{0}}) {
    fs::resize_file(path_, size);
    ExpectLost("was cut or written over");
  }
}

TEST_F(StoreFileTest, AStoreThatIsWrittenOverInPlaceIsNoticed) {
  const std::string older = Copy();
  ASSERT_TRUE(store_->PutArtifacts({{"math", "profile", "k = 3"}}).ok()) << "this raises no generation";
  const std::string other = folder_.File("another.db");
  {
    auto another = SqliteReferenceStore::Open(other).value();
    ASSERT_TRUE(another->Add(MakeReferences("math", 0, 50)).ok());
  }
  for (const std::string& from : {older, other}) {
    WriteOver(from);
    ExpectLost("was written over");
  }
  std::ofstream(path_, std::ios::binary | std::ios::trunc) << std::string(100000, 'x');
  ExpectLost("no store's header");
}

TEST_F(StoreFileTest, WhatLeavesTheStoreWholeIsNoFault) {
  fs::last_write_time(path_, fs::file_time_type::clock::now());
  ExpectSound();
  fs::permissions(path_, fs::perms::owner_read | fs::perms::owner_write);
  fs::create_hard_link(path_, folder_.File("link"));
  fs::remove(folder_.File("link"));
  ExpectSound();
  ASSERT_NO_FATAL_FAILURE(RunSql(path_, "DELETE FROM reference WHERE sequence < 10; PRAGMA wal_checkpoint(TRUNCATE)"));
  ExpectSound();
  ASSERT_NO_FATAL_FAILURE(
      RunSql(path_, "DELETE FROM reference WHERE sequence < 40; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)"));
  ExpectSound();
  // A reader keeps changes in the log, out of the file.
  sqlite3* reader = nullptr;
  ASSERT_EQ(sqlite3_open(path_.c_str(), &reader), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(reader, "BEGIN; SELECT count(*) FROM reference", nullptr, nullptr, nullptr), SQLITE_OK);
  for (int i = 0; i < 30; ++i) ExpectSound();
  sqlite3_close(reader);
  for (int i = 0; i < 3; ++i) ExpectSound();
}

TEST_F(StoreFileTest, NothingBesideTheStoreMakesItsOpeningWait) {
  store_.reset();
  for (const char* suffix : {"", ".lock", "-wal", "-shm", "-journal"}) {
    const std::string path = folder_.File(absl::StrCat("fifo", suffix[0] == '.' ? "lock" : suffix, ".db"));
    ASSERT_EQ(mkfifo((path + suffix).c_str(), 0600), 0);
    const absl::Status status = SqliteReferenceStore::Open(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("store " + path + suffix + ": is a FIFO"));
  }
  fs::create_symlink("/dev/zero", folder_.File("zero.db"));
  EXPECT_THAT(std::string(SqliteReferenceStore::Open(folder_.File("zero.db")).status().message()),
              HasSubstr("is a device"));
  std::ofstream(folder_.File("sparse.db")).close();
  fs::resize_file(folder_.File("sparse.db"), uintmax_t{40} << 30);
  EXPECT_EQ(SqliteReferenceStore::Open(folder_.File("sparse.db")).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(StoreFileTest, ATableThatAnotherProgramDropsOrAltersIsNoticedUntilItIsBack) {
  RunSql(path_, "CREATE TABLE beside (x); CREATE INDEX own ON reference (prompt); VACUUM");
  ExpectSound();  // What others add is theirs.
  for (const auto& [away, back, what] : std::vector<std::tuple<std::string, std::string, std::string>>{
           {"ALTER TABLE reference RENAME TO kept", "ALTER TABLE kept RENAME TO reference", "no such table: reference"},
           {"ALTER TABLE artifact RENAME TO kept", "ALTER TABLE kept RENAME TO artifact", "no such table: artifact"},
           {"ALTER TABLE reference RENAME COLUMN answer TO said", "ALTER TABLE reference RENAME COLUMN said TO answer",
            "answer"},
           {"ALTER TABLE store_state RENAME TO kept", "ALTER TABLE kept RENAME TO store_state", "store_state"}}) {
    RunSql(path_, away);
    ExpectLost("another program has altered its tables");
    ExpectLost(what);
    RunSql(path_, back);
    ExpectSound();
  }
  RunSql(path_, "DROP TABLE reference");
  ExpectLost("no such table: reference");
  EXPECT_EQ(store_->Get(MakeReference("math", 7).id).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(store_->List("math", "", 10).status().code(), absl::StatusCode::kDataLoss);
  store_.reset();
  EXPECT_EQ(SqliteReferenceStore::Open(path_).status().code(), absl::StatusCode::kDataLoss);
}

class EmptyStore : public ::testing::Test {
 protected:
  EmptyStore() { options_.trace_folders = {graphs_}; }
  absl::StatusOr<std::string> Problem() const {
    const auto store = SqliteReferenceStore::Open(path_, options_);
    if (!store.ok()) return store.status();
    return (*store)->empty_problem();
  }
  void ExpectCut(const std::string& trace) const {
    const absl::Status refused = Problem().status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kDataLoss) << refused;
    EXPECT_THAT(std::string(refused.message()),
                HasSubstr("store " + path_ + ": has 0 bytes, but " + trace + " is left"));
    EXPECT_EQ(fs::file_size(path_), 0u) << "nothing was made of it";
  }
  const ScratchFolder folder_;
  const std::string path_ = folder_.File("store.db"), graphs_ = folder_.File("graphs");
  StoreOptions options_;
};

TEST_F(EmptyStore, AFileThatIsAbsentBeginsAStoreWithoutAWord) {
  EXPECT_EQ(Problem().value(), "");
  EXPECT_EQ(Problem().value(), "") << "now it holds an empty store";
}

TEST_F(EmptyStore, AFileOfNoBytesIsTold) {
  std::ofstream(path_).close();
  fs::create_directory(graphs_);
  EXPECT_THAT(Problem().value(), HasSubstr("0 bytes"));
  EXPECT_EQ(Problem().value(), "");
}

TEST_F(EmptyStore, AStoreThatWasCutIsRefusedForWhatIsLeftOfIt) {
  ASSERT_TRUE(SqliteReferenceStore::Open(path_, options_).value()->Add(MakeReferences("math", 0, 5)).ok());
  fs::create_directory(graphs_);
  std::ofstream(graphs_ + "/a.hnsw") << "graph";
  EXPECT_EQ(Problem().value(), "");
  fs::resize_file(path_, 0);
  ExpectCut(graphs_);
  fs::remove_all(graphs_);
  std::ofstream(path_ + "-wal") << "log";
  ExpectCut(path_ + "-wal");
  fs::remove(path_);
  EXPECT_THAT(Problem().value(), HasSubstr("there was no file, and " + path_ + "-wal is left"));
}

}  // namespace
}  // namespace c3po
