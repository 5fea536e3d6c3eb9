// PostgreSQL that is killed, paused or cut off at every moment: nothing acknowledged is lost, nothing is done twice,
// and no call hangs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "index/base/steady_time.h"
#include "index/base/store_away.h"
#include "index/store/postgres/postgres_reference_store.h"
#include "tests/index/store/any_store.h"
#include "tests/index/store/postgres_proxy.h"
#include "tests/index/store/postgres_server.h"

namespace c3po {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using Fault = PostgresProxy::Fault;

const std::string kCommit("COMMIT\0", 7);  // A change begins at READ COMMITTED.

class PostgresFaultsTest : public ::testing::Test {
 protected:
  using Store = std::unique_ptr<PostgresReferenceStore>;

  static StoreOptions Impatient() {
    StoreOptions options;
    options.connect_timeout = absl::Seconds(2);
    options.statement_timeout = absl::Seconds(2);
    return options;
  }
  Store Open(const std::string& url, const StoreOptions& options = StoreOptions()) {
    auto store = PostgresReferenceStore::Open(url, options);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }
  Store Open() { return Open(server_.Url(database_)); }
  Store OpenThroughProxy(const StoreOptions& options = StoreOptions()) {
    return Open(server_.Url(database_, PostgresServer::kOwner, folder_.path()), options);
  }
  // Until the database is back.
  template <typename Change>
  auto Persist(const Change& change) {
    for (const absl::Time end = SteadyNow() + absl::Seconds(120);;
         std::this_thread::sleep_for(std::chrono::milliseconds(50))) {
      auto result = change();
      if (result.ok() || SteadyNow() > end) return result;
    }
  }

  PostgresServer& server_ = PostgresServer::Shared();
  const std::string database_ = server_.NewDatabase();
  ScratchFolder folder_;
  PostgresProxy proxy_{folder_.path(), server_.SocketPath()};
};

TEST_F(PostgresFaultsTest, ACommitWhoseAnswerIsLostIsAcknowledgedAndMadeOnce) {
  const Store store = OpenThroughProxy();
  for (const std::string& what : {std::string("add"), std::string("put"), std::string("delete")}) {
    SCOPED_TRACE(what);
    const int64_t before = store->generation();
    const int faults = proxy_.faults();
    proxy_.OnceAfter(kCommit, Fault::kLoseAnswer);
    if (what == "add") {
      EXPECT_THAT(*store->Add(MakeReferences("math", 0, 3)), Each(AddOutcome::kInserted)) << "not kDuplicate";
    } else if (what == "put") {
      EXPECT_TRUE(store->PutArtifacts({{"math", "prior", "p"}}).ok());
    } else {
      EXPECT_EQ(*store->Delete({MakeReference("math", 0).id}), 1) << "not 0";
    }
    EXPECT_EQ(proxy_.faults(), faults + 1);
    EXPECT_EQ(store->generation(), before + 1);
    EXPECT_EQ(Open()->generation(), before + 1) << "once";
  }
  EXPECT_THAT(*store->List("", "", 100), SizeIs(2));
}

TEST_F(PostgresFaultsTest, AChangeWhoseRequestIsLostAtAnyStatementIsMadeOnce) {
  const Store store = OpenThroughProxy();
  int number = 0;
  for (const std::string& at : {std::string("BEGIN"), std::string("FOR UPDATE"), std::string("INSERT INTO reference"),
                                std::string("pg_notify"), kCommit}) {
    SCOPED_TRACE(at);
    const int faults = proxy_.faults();
    proxy_.OnceAfter(at, Fault::kLoseRequest);
    EXPECT_THAT(*store->Add({MakeReference("math", ++number)}), ElementsAre(AddOutcome::kInserted));
    EXPECT_EQ(proxy_.faults(), faults + 1);
    EXPECT_EQ(Open()->generation(), number);
  }
}

TEST_F(PostgresFaultsTest, ASessionThatFallsSilentEndsTheCallInTimeAndNoOther) {
  const Store store = OpenThroughProxy(Impatient());
  ASSERT_TRUE(store->Add(MakeReferences("math", 0, 2)).ok());
  int silenced = 0;
  for (const char* at : {"INSERT INTO reference", "FROM reference"}) {
    SCOPED_TRACE(at);
    proxy_.OnceAfter(at, Fault::kSilence);
    const absl::Time begun = SteadyNow();
    const absl::Status status = ++silenced == 1 ? store->Add({MakeReference("math", 2)}).status()
                                                : store->Get(MakeReference("math", 0).id).status();
    EXPECT_TRUE(IsStoreAway(status)) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(database_), HasSubstr("does not answer")));
    EXPECT_LT(SteadyNow() - begun, absl::Seconds(10));
    EXPECT_TRUE(store->Get(MakeReference("math", 0).id).ok());
  }
  // The silent session held the row of the state: the server ends it by itself after a while, and changes go on.
  EXPECT_TRUE(Persist([&] { return store->Add({MakeReference("math", 2)}); }).ok());
  EXPECT_EQ(Open()->generation(), 2);
}

TEST_F(PostgresFaultsTest, ACommitThatFallsSilentIsLookedUpAndMadeAgain) {
  const Store store = OpenThroughProxy(Impatient());
  proxy_.OnceAfter(kCommit, Fault::kSilence);
  const absl::Time begun = SteadyNow();
  // The silent session holds the row of the state until the server ends it.
  EXPECT_TRUE(Persist([&] { return store->Add({MakeReference("math", 0)}); }).ok());
  EXPECT_LT(SteadyNow() - begun, absl::Seconds(30));
  EXPECT_EQ(proxy_.faults(), 1);
  EXPECT_EQ(Open()->generation(), 1);
}

TEST_F(PostgresFaultsTest, ACommitOfWhichNobodyKnowsIsToldAsSuchAndMayBeRepeated) {
  const Store store = OpenThroughProxy(Impatient());
  ASSERT_TRUE(store->Add({MakeReference("math", 0)}).ok());
  proxy_.OnceAfter(kCommit, Fault::kDarkness);
  const absl::Status status = store->Add({MakeReference("math", 1)}).status();
  EXPECT_TRUE(IsStoreAway(status)) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(database_), HasSubstr("the change may have been made")));
  EXPECT_EQ(store->generation(), 1) << "it is not acknowledged";
  proxy_.Relight();
  const auto outcomes = Persist([&] { return store->Add({MakeReference("math", 1)}); });
  EXPECT_THAT(*outcomes, ElementsAre(AddOutcome::kDuplicate)) << "it was made";
  EXPECT_EQ(Open()->generation(), 2) << "once";
}

TEST_F(PostgresFaultsTest, AMachineThatHangsHangsNobody) {
  const Store store = OpenThroughProxy(Impatient());
  ASSERT_TRUE(store->Add({MakeReference("math", 0)}).ok());
  server_.Pause();
  const absl::Time begun = SteadyNow();
  for (const absl::Status& status :
       {store->Add({MakeReference("math", 1)}).status(), store->CheckPlace(), store->List("", "", 10).status(),
        store->WaitForGeneration(0, absl::Seconds(1)).status()}) {
    EXPECT_TRUE(IsStoreAway(status)) << status;
  }
  EXPECT_LT(SteadyNow() - begun, absl::Seconds(30));
  server_.Resume();
  EXPECT_TRUE(Persist([&] { return store->Add({MakeReference("math", 1)}); }).ok());
  EXPECT_THAT(*store->List("", "", 10), SizeIs(2));
  EXPECT_TRUE(store->CheckPlace().ok()) << store->CheckPlace();
}

TEST_F(PostgresFaultsTest, SessionsThatAreEndedInTheMidstOfChangesLoseAndDoubleNothing) {
  const Store store = Open();
  std::atomic<bool> done{false};
  std::thread ends([&] {
    std::mt19937 random(20261130);
    while (!done) {
      server_.Sql("postgres",
                  "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '" + database_ + "'");
      std::this_thread::sleep_for(std::chrono::milliseconds(10 + random() % 80));
    }
  });
  int refused = 0;
  for (int i = 0; i < 150; ++i) {
    const auto outcomes = Persist([&] {
      auto added = store->Add(MakeReferences("math", i * 2, i * 2 + 2));
      refused += !added.ok();
      return added;
    });
    EXPECT_TRUE(outcomes.ok()) << outcomes.status();
  }
  done = true;
  ends.join();
  EXPECT_LT(refused, 100) << "most are made again without the caller's help";
  EXPECT_EQ(Open()->generation(), 150);
  EXPECT_THAT(*Open()->List("", "", 1000), SizeIs(300));
}

// A trigger says what PostgreSQL says of a full disk, in the middle of a batch or when it is committed.
TEST_F(PostgresFaultsTest, AFullDiskRefusesABatchWholeAndTheStoreGoesOn) {
  const Store store = Open();
  ASSERT_TRUE(store->Add(MakeReferences("math", 0, 5)).ok());
  server_.Sql(database_,
              "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS "
              "$$ BEGIN RAISE 'No space left on device' USING ERRCODE = 'disk_full'; END $$");
  for (const char* when :
       {"TRIGGER full_disk BEFORE INSERT ON reference FOR EACH ROW WHEN (NEW.sequence > 7)",
        "CONSTRAINT TRIGGER full_disk AFTER INSERT ON reference DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"}) {
    SCOPED_TRACE(when);
    server_.Sql(database_, absl::StrCat("CREATE ", when, " EXECUTE FUNCTION fill()"));
    const absl::Status status = store->Add(MakeReferences("math", 5, 15)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(database_), HasSubstr("No space left on device")));
    EXPECT_EQ(store->generation(), 1);
    EXPECT_EQ(*store->WaitForGeneration(0, absl::ZeroDuration()), 1);
    EXPECT_THAT(*store->List("", "", 100), SizeIs(5));
    EXPECT_TRUE(store->PutArtifacts({{"math", "prior", ""}}).ok());
    server_.Sql(database_, "DROP TRIGGER full_disk ON reference");
  }
  EXPECT_TRUE(store->Add(MakeReferences("math", 5, 15)).ok());
  EXPECT_EQ(store->generation(), 2);
}

// Two servers write while every process of PostgreSQL is killed, five times.
TEST_F(PostgresFaultsTest, EverythingAcknowledgedSurvivesKillsOfTheDatabaseAndBatchesAreWhole) {
  constexpr int kBatch = 4;
  std::mutex mutex;
  std::set<std::string> acknowledged;
  std::atomic<bool> done{false};
  std::atomic<int> batches{0};
  ASSERT_NE(Open(), nullptr);
  std::vector<std::thread> writers;
  for (int writer = 0; writer < 2; ++writer) {
    writers.emplace_back([&, writer] {
      const Store store = Open();
      for (int batch = 0; !done; ++batch) {
        const auto records = MakeReferences(absl::StrCat("of-", writer), batch * kBatch, (batch + 1) * kBatch);
        const auto outcomes = store->Add(records);
        if (!outcomes.ok()) {
          EXPECT_TRUE(IsStoreAway(outcomes.status())) << outcomes.status();
          std::this_thread::sleep_for(std::chrono::milliseconds(20));
          continue;
        }
        ++batches;
        const std::lock_guard<std::mutex> lock(mutex);
        for (const ReferenceRecord& record : records) acknowledged.insert(record.id);
      }
    });
  }
  std::mt19937 random(20261130);
  for (int kill = 0; kill < 5; ++kill) {
    const int before = batches;
    while (batches < before + 10) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 50000));
    server_.Kill();
    server_.Start();
  }
  done = true;
  for (std::thread& each : writers) each.join();
  const Store store = Open();
  std::map<std::string, int> found;
  int64_t rows = 0;
  ASSERT_TRUE(store
                  ->ForEach([&](ReferenceRecord record) {
                    EXPECT_EQ(++found[record.id], 1);
                    ++rows;
                    return absl::OkStatus();
                  })
                  .ok());
  for (const std::string& id : acknowledged) ASSERT_EQ(found.count(id), 1u) << "lost";
  EXPECT_EQ(rows % kBatch, 0) << "a batch was torn";
  EXPECT_EQ(store->generation(), rows / kBatch) << "a generation for each";
  EXPECT_GT(acknowledged.size(), 5u * 10 * kBatch / 2);
}

TEST_F(PostgresFaultsTest, ADatabaseThatIsAwayIsTriedAgainAfterAPauseAndOthersAreToldAtOnce) {
  const Store store = Open();
  ASSERT_TRUE(store->Add({MakeReference("math", 0)}).ok());
  server_.Kill();
  for (int i = 0; i < 200; ++i) {
    const absl::Time begun = SteadyNow();
    const absl::Status status = store->Add({MakeReference("math", 1)}).status();
    EXPECT_TRUE(IsStoreAway(status)) << status;
    EXPECT_LT(SteadyNow() - begun, absl::Seconds(5));
  }
  EXPECT_EQ(store->generation(), 1);
  server_.Start();
  EXPECT_TRUE(Persist([&] { return store->Add({MakeReference("math", 1)}); }).ok());
  EXPECT_EQ(store->generation(), 2);
}

}  // namespace
}  // namespace c3po
