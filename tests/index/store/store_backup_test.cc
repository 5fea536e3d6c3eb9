// Copies of a store that is open: of its file alone, and by StartBackup while it changes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "index/store/reference_store.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Every record and artifact, as text.
std::map<std::string, std::string> ContentsOf(const ReferenceStore& store, const std::string& collection) {
  std::map<std::string, std::string> contents;
  const absl::Status read = store.ForEach([&](ReferenceRecord record) {
    contents[record.id] = absl::StrCat(record.sample.prompt, record.sample.answer, record.successful);
    return absl::OkStatus();
  });
  EXPECT_TRUE(read.ok()) << read;
  const auto artifacts = store.Artifacts(collection, "");
  EXPECT_TRUE(artifacts.ok()) << artifacts.status();
  for (const Artifact& artifact : *artifacts) contents["artifact " + artifact.name] = artifact.value;
  return contents;
}

class StoreBackupTest : public ::testing::Test {
 protected:
  StoreBackupTest() : store_(OpenReferenceStore(path_).value()) {}

  // What the copy at `path` holds, as a server that is started with it finds it.
  std::map<std::string, std::string> ContentsOfCopy(const std::string& path) {
    const auto copy = OpenReferenceStore(path);
    EXPECT_TRUE(copy.ok()) << copy.status();
    return copy.ok() ? ContentsOf(**copy, "math") : std::map<std::string, std::string>();
  }

  std::map<std::string, std::string> ContentsOfCopiedFile() {
    const std::string copy = folder_.File(absl::StrCat("copied-", ++copies_, ".db"));
    std::filesystem::copy_file(path_, copy);
    return ContentsOfCopy(copy);
  }

  static void Finish(StoreBackup& backup, int pages) {
    while (true) {
      const auto whole = backup.Step(pages);
      ASSERT_TRUE(whole.ok()) << whole.status();
      if (*whole) return;
    }
  }

  ScratchFolder folder_;
  const std::string path_ = folder_.File("store.db");
  std::unique_ptr<ReferenceStore> store_;
  int copies_ = 0;
};

TEST_F(StoreBackupTest, TheFileAloneHoldsEachChangeOfAnOpenStore) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 30)).ok());
  EXPECT_EQ(ContentsOfCopiedFile(), ContentsOf(*store_, "math"));
  ASSERT_TRUE(store_->PutArtifacts({{"math", "profile", "k = 3"}}).ok());
  EXPECT_EQ(ContentsOfCopiedFile(), ContentsOf(*store_, "math"));
  ASSERT_TRUE(store_->Delete({MakeReference("math", 7).id}).ok());
  EXPECT_EQ(ContentsOfCopiedFile(), ContentsOf(*store_, "math"));
  EXPECT_EQ(ContentsOf(*store_, "math").size(), 30u);
}

TEST_F(StoreBackupTest, ABackupIsOneFileWithAllThatTheStoreHeld) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 200)).ok());
  ASSERT_TRUE(store_->PutArtifacts({{"math", "prior", std::string(100000, 'p')}}).ok());
  const std::string copy = folder_.File("copy.db");
  auto backup = store_->StartBackup(copy);
  ASSERT_TRUE(backup.ok()) << backup.status();
  ASSERT_NO_FATAL_FAILURE(Finish(**backup, 5));
  backup->reset();
  EXPECT_FALSE(std::filesystem::exists(copy + "-wal"));
  EXPECT_FALSE(std::filesystem::exists(copy + "-journal"));
  // Bytes 18 and 19 of the header (sqlite.org/fileformat2.html): 1 is a file that no write-ahead log belongs to.
  std::ifstream file(copy, std::ios::binary);
  char header[20] = {};
  file.read(header, sizeof(header));
  EXPECT_EQ(header[18], 1);
  EXPECT_EQ(header[19], 1);
  EXPECT_EQ(ContentsOfCopy(copy), ContentsOf(*store_, "math"));
}

TEST_F(StoreBackupTest, ChangesBetweenStepsAreInTheCopyWhereverTheyFall) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 300)).ok());
  const std::string copy = folder_.File("copy.db");
  auto backup = store_->StartBackup(copy);
  ASSERT_TRUE(backup.ok()) << backup.status();
  bool whole = false;
  int changes = 0;
  while (!whole) {
    const auto step = (*backup)->Step(4);
    ASSERT_TRUE(step.ok()) << step.status();
    whole = *step;
    if (whole) break;
    // Pages at both ends, copied or not: rows added, rows deleted, an artifact.
    ASSERT_TRUE(store_->Add({MakeReference("math", 1000 + changes)}).ok());
    ASSERT_TRUE(store_->Delete({MakeReference("math", changes).id}).ok());
    ASSERT_TRUE(store_->PutArtifacts({{"math", "profile", absl::StrCat("change ", changes)}}).ok());
    ++changes;
  }
  EXPECT_GT(changes, 5);
  EXPECT_EQ(ContentsOfCopy(copy), ContentsOf(*store_, "math"));
}

TEST_F(StoreBackupTest, AStoreThatOthersChangeAndReadCanBeCopied) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 500)).ok());
  std::atomic<bool> stop{false};
  std::thread changing([&] {
    for (int i = 0; !stop; ++i) {
      EXPECT_TRUE(store_->Add({MakeReference("math", 1000 + i)}).ok());
      EXPECT_TRUE(store_->Get(MakeReference("math", i % 500).id).ok());
    }
  });
  for (int round = 0; round < 3; ++round) {
    const std::string copy = folder_.File(absl::StrCat("copy-", round, ".db"));
    auto backup = store_->StartBackup(copy);
    ASSERT_TRUE(backup.ok()) << backup.status();
    Finish(**backup, 16);
    EXPECT_GE(ContentsOfCopy(copy).size(), 500u);
  }
  stop = true;
  changing.join();
}

TEST_F(StoreBackupTest, WhatIsNotFinishedLeavesNoFile) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 100)).ok());
  const std::string copy = folder_.File("copy.db");
  {
    auto backup = store_->StartBackup(copy);
    ASSERT_TRUE(backup.ok()) << backup.status();
    ASSERT_TRUE((*backup)->Step(2).ok());
    for (const std::string& other : {copy, folder_.File("other.db")}) {
      const absl::Status busy = store_->StartBackup(other).status();
      EXPECT_EQ(busy.code(), absl::StatusCode::kResourceExhausted);
      EXPECT_THAT(std::string(busy.message()), HasSubstr("another backup is being made"));
    }
    EXPECT_TRUE(std::filesystem::exists(copy));
  }
  EXPECT_FALSE(std::filesystem::exists(copy));
  EXPECT_FALSE(std::filesystem::exists(folder_.File("other.db")));
  ASSERT_TRUE(store_->Add({MakeReference("math", 1000)}).ok());  // The store is not held.
  const absl::Status nowhere = store_->StartBackup(folder_.File("no/folder/copy.db")).status();
  EXPECT_EQ(nowhere.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(nowhere.message()), HasSubstr("no/folder/copy.db"));
}

TEST_F(StoreBackupTest, WhatAKilledProcessLeftIsRemovedAtTheNextOpening) {
  store_.reset();
  std::ofstream(path_ + ".backup.partial") << "half";
  store_ = OpenReferenceStore(path_).value();
  EXPECT_EQ(store_->partial_backup_path(), path_ + ".backup.partial");
  EXPECT_FALSE(std::filesystem::exists(path_ + ".backup.partial"));
}

TEST_F(StoreBackupTest, FilesOfOthersAreLeftAsTheyAreAndToldFromABackupUnderWay) {
  store_.reset();
  const std::string own_copy = path_ + ".backup";  // As an operator would call it.
  std::filesystem::copy_file(path_, own_copy);
  const auto size = std::filesystem::file_size(own_copy);
  store_ = OpenReferenceStore(path_).value();
  EXPECT_EQ(std::filesystem::file_size(own_copy), size);
  const std::string path = store_->partial_backup_path();
  std::ofstream(path) << "foreign";
  const absl::Status taken = store_->StartBackup(path).status();
  EXPECT_EQ(taken.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(taken.message()), HasSubstr(path));
  EXPECT_EQ(std::filesystem::file_size(path), 7u);
  std::filesystem::remove(path);
  auto backup = store_->StartBackup(path);
  ASSERT_TRUE(backup.ok()) << backup.status();
  ASSERT_NO_FATAL_FAILURE(Finish(**backup, 5));
  EXPECT_EQ(std::filesystem::file_size(own_copy), size);
}

TEST_F(StoreBackupTest, CollectionsWithAnArtifactAreListed) {
  ASSERT_TRUE(store_->PutArtifacts({{"b", "prior", "1"}, {"a", "prior", "2"}, {"c", "profile", "3"}}).ok());
  EXPECT_THAT(*store_->CollectionsWith("prior"), ElementsAre("a", "b"));
  EXPECT_TRUE(store_->CollectionsWith("pri")->empty());
}

}  // namespace
}  // namespace c3po
