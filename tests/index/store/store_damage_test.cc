// Rows that are not as they were written, and files of versions that had no checksums.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>

#include "index/store/reference_store.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Brings a file of this version to the second one, whose rows have no checksum.
constexpr char kToVersion2[] =
    "DROP INDEX reference_by_generation; DROP INDEX artifact_by_generation; DROP TABLE erased;"
    "ALTER TABLE reference DROP COLUMN generation; ALTER TABLE artifact DROP COLUMN generation;"
    "ALTER TABLE store_state DROP COLUMN remembered_from;"
    "ALTER TABLE reference DROP COLUMN checksum; ALTER TABLE artifact DROP COLUMN checksum;"
    "ALTER TABLE store_state DROP COLUMN stamp; PRAGMA user_version = 2";

// Everything that is served of a record, as text.
std::string TextOf(const ReferenceRecord& record) {
  std::string text = absl::StrCat(record.collection, "|", record.sample.prompt, "|", record.sample.answer, "|",
                                  record.successful, "|", record.model_digest, "|", record.embedder_digest, "|",
                                  record.pathway.layers, "|", record.created_unix_seconds);
  for (const std::string& choice : record.sample.choices) absl::StrAppend(&text, "|", choice);
  for (const auto& [key, value] : record.sample.metadata) absl::StrAppend(&text, "|", key, "=", value);
  for (const float value : record.embedding) absl::StrAppend(&text, "|", value);
  for (const float value : record.pathway.weights) absl::StrAppend(&text, "|", value);
  return text;
}

std::string BytesOf(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

class StoreDamageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Reopen();
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
  void Reopen() {
    store_.reset();
    auto store = OpenReferenceStore(path_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  // While the store is closed.
  void RunSql(const std::string& sql) {
    store_.reset();
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open(path_.c_str(), &db), SQLITE_OK);
    ASSERT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(db);
    sqlite3_close(db);
  }
  std::set<std::string> Served() {
    std::set<std::string> ids;
    EXPECT_TRUE(store_
                    ->ForEach([&](ReferenceRecord record) {
                      ids.insert(record.id);
                      return absl::OkStatus();
                    })
                    .ok());
    return ids;
  }

  ScratchFolder folder_;
  const std::string path_ = folder_.File("references.db");
  std::unique_ptr<ReferenceStore> store_;
  std::vector<ReferenceRecord> records_;
  std::vector<Artifact> artifacts_;
};

// The store with one bit turned, at a random place: either it is refused, or what it serves is what was written, and
// what is missing is told.
TEST_F(StoreDamageTest, NoBitThatWasTurnedIsServed) {
  store_.reset();
  const std::string good = BytesOf(path_);
  std::map<std::string, std::string> texts;
  for (const ReferenceRecord& record : records_) texts[record.id] = TextOf(record);
  std::map<std::string, std::string> values;
  for (const Artifact& artifact : artifacts_) values[artifact.collection + "/" + artifact.name] = artifact.value;
  std::mt19937 random(20261129);
  int refused = 0, left_out = 0;
  for (int round = 0; round < 300; ++round) {
    std::string bad = good;
    const size_t bit = random() % (bad.size() * 8);
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    SCOPED_TRACE(absl::StrCat("bit ", bit, " of ", bad.size() * 8));
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bad;
    std::filesystem::remove(path_ + "-wal");
    auto store = OpenReferenceStore(path_);
    std::vector<ReferenceRecord> served;
    std::vector<Artifact> artifacts;
    absl::Status status = store.status();
    if (status.ok()) {
      status = (*store)->ForEach([&](ReferenceRecord record) {
        served.push_back(std::move(record));
        return absl::OkStatus();
      });
    }
    for (const char* collection : {"math", "law"}) {
      if (!status.ok()) break;
      const auto found = (*store)->Artifacts(collection, "");
      status = found.status();
      if (found.ok()) artifacts.insert(artifacts.end(), found->begin(), found->end());
    }
    if (!status.ok()) {
      ++refused;
      EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
      continue;
    }
    for (const ReferenceRecord& record : served) ASSERT_EQ(TextOf(record), texts[record.id]);
    for (const Artifact& artifact : artifacts) {
      ASSERT_EQ(artifact.value, values[artifact.collection + "/" + artifact.name]);
    }
    const auto damaged = (*store)->Damaged();
    ASSERT_EQ(served.size() + artifacts.size() + damaged.size(), texts.size() + values.size());
    left_out += !damaged.empty();
    int64_t counted = 0;
    const auto stats = (*store)->Stats(kModelDigest, kEmbedderDigest);
    ASSERT_TRUE(stats.ok()) << stats.status();
    for (const CollectionStats& each : *stats) counted += each.references;
    ASSERT_EQ(counted, static_cast<int64_t>(served.size()));
  }
  EXPECT_GT(refused, 10);
  EXPECT_GT(left_out, 75);
}

TEST_F(StoreDamageTest, ArtifactsAreLookedAtWhenTheStoreIsOpened) {
  RunSql(
      "UPDATE artifact SET value = 'k = 4' WHERE name = 'profile'; UPDATE artifact SET checksum = NULL WHERE name = "
      "'prior'");
  Reopen();
  ASSERT_THAT(store_->Damaged(), SizeIs(2));
  EXPECT_EQ(store_->Damaged()[0].kind, DamagedRow::Kind::kArtifact);
  EXPECT_EQ(store_->Damaged()[1].name, "profile");
  EXPECT_THAT(*store_->Artifacts("law", ""), IsEmpty());
  EXPECT_THAT(*store_->CollectionsWith("profile"), IsEmpty());
  ASSERT_TRUE(store_->PutArtifacts({{"law", "profile", "k = 5"}, {"law", "prior", ""}}).ok());
  EXPECT_THAT(store_->Damaged(), IsEmpty());
  EXPECT_THAT(*store_->CollectionsWith("profile"), ElementsAre("law"));
}

TEST_F(StoreDamageTest, IndexesThatDisagreeWithTheTableAreMadeAnew) {
  EXPECT_EQ(store_->index_problem(), "");
  // An entry of the index of collections leads elsewhere: the text is there twice, in the table and in the index.
  store_.reset();
  std::string bytes = BytesOf(path_);
  const std::string entry = "law" + records_[25].id;
  const size_t at = bytes.find(entry);
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at, 3, "low");
  std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
  Reopen();
  EXPECT_THAT(store_->index_problem(), HasSubstr("corrupt"));
  EXPECT_EQ(Served().size(), records_.size());
  EXPECT_THAT(store_->Damaged(), IsEmpty());
  EXPECT_THAT(*store_->List("law", "", 100), SizeIs(10));
  Reopen();
  EXPECT_EQ(store_->index_problem(), "");
}

TEST_F(StoreDamageTest, AFileOfVersion2GetsChecksumsOfWhatItHolds) {
  RunSql(std::string(kToVersion2) + "; UPDATE reference SET pathway = x'00' WHERE id = '" + records_[7].id + "'");
  Reopen();
  EXPECT_EQ(Served().size(), records_.size() - 1) << "what cannot be decoded is left out, as before";
  EXPECT_THAT(store_->Damaged(), SizeIs(1));
  EXPECT_EQ(TextOf(*store_->Get(records_[8].id)), TextOf(records_[8]));
  EXPECT_EQ(store_->Artifacts("law", "profile")->front().value, "k = 3");
  EXPECT_TRUE(store_->CheckPlace().ok()) << store_->CheckPlace();
  RunSql("UPDATE reference SET answer = 'another' WHERE id = '" + records_[8].id + "'");
  Reopen();
  EXPECT_EQ(store_->Get(records_[8].id).status().code(), absl::StatusCode::kDataLoss);
}

// In a child each, because a size limit and a kill are a process's.
TEST_F(StoreDamageTest, AnUpgradeThatIsCutLeavesTheOldVersionOrTheNewOne) {
  ASSERT_TRUE(store_->Add(MakeReferences("many", 100, 500)).ok());
  const size_t all = Served().size();
  RunSql(kToVersion2);
  const std::string old = BytesOf(path_);
  std::mt19937 random(7);
  for (int round = 0; round < 16; ++round) {
    std::filesystem::remove(path_ + "-wal");
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << old;
    const bool by_limit = round % 2 == 0;
    // The log takes every page of both tables, which are more than a quarter of the file.
    const auto limit = static_cast<rlim_t>(4096 * (1 + random() % (old.size() / 4096 / 4)));
    const auto microseconds = static_cast<useconds_t>(random() % 60000);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      signal(SIGXFSZ, SIG_IGN);
      const rlimit bytes = {limit, limit};
      if (by_limit && setrlimit(RLIMIT_FSIZE, &bytes) != 0) _exit(10);
      const auto store = OpenReferenceStore(path_);
      _exit(store.ok() ? 0 : 11);
    }
    if (!by_limit) {
      usleep(microseconds);
      kill(child, SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    if (by_limit) {
      ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 11)
          << "status " << status << ", limit " << limit << ": the log needs more than that";
    }
    Reopen();
    EXPECT_EQ(Served().size(), all);
    EXPECT_THAT(store_->Damaged(), IsEmpty());
    EXPECT_THAT(*store_->Artifacts("math", ""), SizeIs(20));
    store_.reset();
  }
}

}  // namespace
}  // namespace c3po
