// Cuts: a disk that fills up, and processes killed at any moment.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <map>
#include <set>
#include <thread>

#include "index/store/reference_store.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

std::map<std::string, int> CountIds(const ReferenceStore& store) {
  std::map<std::string, int> counts;
  const absl::Status status = store.ForEach([&](ReferenceRecord record) {
    ++counts[record.id];
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return counts;
}

std::string IntegrityCheck(const std::string& path) {
  sqlite3* db = nullptr;
  EXPECT_EQ(sqlite3_open(path.c_str(), &db), SQLITE_OK);
  sqlite3_stmt* statement = nullptr;
  EXPECT_EQ(sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &statement, nullptr), SQLITE_OK);
  EXPECT_EQ(sqlite3_step(statement), SQLITE_ROW);
  const std::string result = reinterpret_cast<const char*>(sqlite3_column_text(statement, 0));
  sqlite3_finalize(statement);
  sqlite3_close(db);
  return result;
}

// Adds batches of ten until one fails; returns how many succeeded.
int FillUp(ReferenceStore& store, absl::Status& failure) {
  for (int batch = 0; batch < 10000; ++batch) {
    failure = store.Add(MakeReferences("math", batch * 10, batch * 10 + 10)).status();
    if (!failure.ok()) return batch;
  }
  return 10000;
}

TEST(StoreDurability, FullDatabaseRefusesABatchWholeAndGoesOnWorking) {
  ScratchFolder folder;
  StoreOptions options;
  options.pages_max = 60;
  auto store = OpenReferenceStore(folder.File("store.db"), options);
  ASSERT_TRUE(store.ok()) << store.status();
  absl::Status failure;
  const int batches = FillUp(**store, failure);
  ASSERT_GT(batches, 2);
  EXPECT_EQ(failure.code(), absl::StatusCode::kResourceExhausted) << failure;
  EXPECT_THAT(std::string(failure.message()), ::testing::HasSubstr(folder.File("store.db")));
  EXPECT_EQ(CountIds(**store).size(), static_cast<size_t>(batches) * 10);
  EXPECT_EQ((*store)->generation(), batches);

  EXPECT_EQ(*(*store)->DeleteCollection("math"), batches * 10);
  // There was no room to note what went: who has seen it is told to begin anew.
  const auto changes = (*store)->ChangesSince(batches, 10);
  ASSERT_TRUE(changes.ok()) << changes.status();
  EXPECT_TRUE(changes->from_start);
  EXPECT_TRUE(changes->records.empty());
  EXPECT_TRUE((*store)->Add(MakeReferences("math", 0, 10)).ok()) << "there is room again";
  store->reset();
  EXPECT_EQ(IntegrityCheck(folder.File("store.db")), "ok");
}

// In a child process, because a file size limit holds for the whole process.
TEST(StoreDurability, WritesBeyondTheFileSizeLimitLoseNothingAcknowledged) {
  ScratchFolder folder;
  const std::string path = folder.File("store.db");
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {200 * 1024, 200 * 1024};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(10);
    auto store = OpenReferenceStore(path);
    if (!store.ok()) _exit(11);
    absl::Status failure;
    const int batches = FillUp(**store, failure);
    if (failure.code() != absl::StatusCode::kResourceExhausted) _exit(12);
    if (!(*store)->ForEach([](ReferenceRecord) { return absl::OkStatus(); }).ok()) _exit(13);
    if (write(pipe_ends[1], &batches, sizeof(batches)) != sizeof(batches)) _exit(14);
    _exit(0);
  }
  close(pipe_ends[1]);
  int batches = 0;
  const ssize_t got = read(pipe_ends[0], &batches, sizeof(batches));
  close(pipe_ends[0]);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  ASSERT_EQ(got, static_cast<ssize_t>(sizeof(batches)));
  EXPECT_GT(batches, 2);

  auto store = OpenReferenceStore(path);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(CountIds(**store).size(), static_cast<size_t>(batches) * 10);
  EXPECT_TRUE((*store)->Add(MakeReferences("more", 0, 10)).ok());
}

// Adds batches, deletes now and then, and writes a line per acknowledged change, for ever.
[[noreturn]] void AddUntilKilled(const std::string& path, int round, int out) {
  auto store = OpenReferenceStore(path);
  if (!store.ok()) _exit(11);
  const std::string collection = absl::StrCat("round-", round);
  for (int batch = 0;; ++batch) {
    const auto records = MakeReferences(collection, batch * 4, batch * 4 + 4);
    if (!(*store)->Add(records).ok()) _exit(12);
    std::string lines;
    for (const ReferenceRecord& record : records) absl::StrAppend(&lines, "+", record.id, "\n");
    if (write(out, lines.data(), lines.size()) != static_cast<ssize_t>(lines.size())) _exit(13);
    if (batch % 5 != 4) continue;
    // Announced before, so that the reader knows an id that may be gone without its acknowledgment.
    const std::string announce = absl::StrCat("?", records[0].id, "\n");
    if (write(out, announce.data(), announce.size()) != static_cast<ssize_t>(announce.size())) _exit(14);
    if (!(*store)->Delete({records[0].id}).ok()) _exit(15);
    const std::string done = absl::StrCat("-", records[0].id, "\n");
    if (write(out, done.data(), done.size()) != static_cast<ssize_t>(done.size())) _exit(16);
  }
}

TEST(StoreDurability, EverythingAcknowledgedSurvivesKillsAtRandomMoments) {
  ScratchFolder folder;
  const std::string path = folder.File("store.db");
  std::mt19937 random(20240711);
  std::set<std::string> present, maybe, gone;
  for (int round = 0; round < 12; ++round) {
    int pipe_ends[2];
    ASSERT_EQ(pipe(pipe_ends), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      close(pipe_ends[0]);
      AddUntilKilled(path, round, pipe_ends[1]);
    }
    close(pipe_ends[1]);
    std::string lines;
    std::atomic<int64_t> bytes{0};
    std::atomic<bool> ended{false};
    std::thread reader([&] {
      char buffer[4096];
      ssize_t got;
      while ((got = read(pipe_ends[0], buffer, sizeof(buffer))) > 0) {
        lines.append(buffer, static_cast<size_t>(got));
        bytes += got;
      }
      ended = true;
    });
    // Every other round begins to count once the disk, however slow, has taken something: about 25 lines.
    while (round % 2 == 1 && bytes < 1000 && !ended) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::this_thread::sleep_for(std::chrono::microseconds(20000 + random() % 150000));
    ASSERT_EQ(kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    reader.join();
    close(pipe_ends[0]);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself: " << WEXITSTATUS(status);

    for (size_t begin = 0, end; (end = lines.find('\n', begin)) != std::string::npos; begin = end + 1) {
      const std::string id = lines.substr(begin + 1, end - begin - 1);
      if (lines[begin] == '+') present.insert(id);
      if (lines[begin] == '?') present.erase(id), maybe.insert(id);
      if (lines[begin] == '-') maybe.erase(id), gone.insert(id);
    }
    auto store = OpenReferenceStore(path);
    ASSERT_TRUE(store.ok()) << store.status();
    const std::map<std::string, int> counts = CountIds(**store);
    for (const std::string& id : present) ASSERT_EQ(counts.count(id), 1u) << "lost in round " << round;
    for (const std::string& id : gone) ASSERT_EQ(counts.count(id), 0u) << "came back in round " << round;
    for (const auto& [id, count] : counts) ASSERT_EQ(count, 1) << id;
    // Batches are whole: four each, of which a fifth of the batches may have lost one to a deletion.
    auto stats = (*store)->Stats(kModelDigest, kEmbedderDigest);
    ASSERT_TRUE(stats.ok()) << stats.status();
    int64_t total = 0;
    for (const CollectionStats& entry : *stats) total += entry.references;
    int64_t deleted = static_cast<int64_t>(gone.size());
    for (const std::string& id : maybe) deleted += counts.count(id) == 0;
    EXPECT_EQ((total + deleted) % 4, 0) << "a batch was torn in round " << round;
    store->reset();
    ASSERT_EQ(IntegrityCheck(path), "ok");
  }
  EXPECT_GT(present.size(), 100u);
}

}  // namespace
}  // namespace c3po
