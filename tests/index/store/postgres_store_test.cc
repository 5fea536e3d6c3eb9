// What is PostgreSQL's alone: rights, schemas, several servers at once, and passwords that nobody is told.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "index/base/steady_time.h"
#include "index/base/store_away.h"
#include "index/store/postgres/postgres_location.h"
#include "index/store/postgres/postgres_reference_store.h"
#include "tests/index/store/any_store.h"
#include "tests/index/store/postgres_server.h"
#include "tests/index/store/store_follower.h"

namespace c3po {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

class PostgresStoreTest : public ::testing::Test {
 protected:
  using Store = std::unique_ptr<PostgresReferenceStore>;

  Store Open(const std::string& url) {
    auto store = PostgresReferenceStore::Open(url);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }
  Store Open() { return Open(url_); }
  absl::Status OpenError(const std::string& url, const StoreOptions& options = StoreOptions()) {
    return PostgresReferenceStore::Open(url, options).status();
  }
  std::vector<std::string> Sql(const std::string& sql) { return server_.Sql(database_, sql); }

  PostgresServer& server_ = PostgresServer::Shared();
  const std::string database_ = server_.NewDatabase();
  const std::string url_ = server_.Url(database_);
};

TEST_F(PostgresStoreTest, LocationsAreNamedByHostPortAndDatabaseAlone) {
  const auto named = [](const std::string& url) { return PostgresLocation::Parse(url).value().name; };
  EXPECT_EQ(named("postgresql://ann:secret@db.example:5433/refs?sslmode=require"), "postgresql://db.example:5433/refs");
  EXPECT_EQ(named("postgres://ann@one,two/refs?target_session_attrs=any"), "postgresql://one:5432,two:5432/refs");
  EXPECT_EQ(named("postgresql://ann@%2Frun%2Fpg/refs?password=secret"), "postgresql://%2Frun%2Fpg:5432/refs");
  EXPECT_EQ(PostgresLocation::Parse("postgresql://h/d").value().schema, "c3po");
  const auto chosen = PostgresLocation::Parse("postgresql://h/d?c3po_schema=team_a&sslmode=disable");
  EXPECT_EQ(chosen->schema, "team_a");
  EXPECT_THAT(chosen->parameters, ::testing::Contains(::testing::Pair("sslmode", "disable")));
  for (const char* wrong :
       {"postgresql://ann:secret@h/d?c3po_schema=Team", "postgresql://ann:secret@h/d?c3po_schema=a;b",
        "postgresql://ann:secret@h/d?secret=1", "postgresql://ann:secret@h:port/%zz"}) {
    const absl::Status status = PostgresLocation::Parse(wrong).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << wrong;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("secret"))) << wrong;
  }
}

TEST_F(PostgresStoreTest, NoMessageHasThePassword) {
  const std::string right = absl::StrCat(PostgresServer::kGuarded, ":", PostgresServer::kPassword);
  const Store store = Open(server_.Url(database_, right));
  ASSERT_NE(store, nullptr);
  EXPECT_THAT(store->location(), AllOf(HasSubstr(database_), Not(HasSubstr(PostgresServer::kPassword)),
                                       Not(HasSubstr(PostgresServer::kGuarded))));
  const std::string away = "postgresql://" + right + "@%2Fno%2Fsuch%2Ffolder/" + database_;
  const std::string absent = server_.Url("no_such_database", right);
  const std::string wrong = server_.Url(database_, std::string(PostgresServer::kGuarded) + ":wr0ng-w0rd");
  const std::string missing = server_.Url(database_, PostgresServer::kGuarded);
  for (const auto& [url, code] :
       {std::pair(away, absl::StatusCode::kUnavailable), std::pair(absent, absl::StatusCode::kNotFound),
        std::pair(wrong, absl::StatusCode::kPermissionDenied),
        std::pair(missing, absl::StatusCode::kPermissionDenied)}) {
    const absl::Status status = OpenError(url);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(Not(HasSubstr(PostgresServer::kPassword)), Not(HasSubstr("wr0ng-w0rd"))));
    EXPECT_THAT(std::string(status.message()), HasSubstr("store postgresql://"));
  }
  EXPECT_TRUE(IsStoreAway(OpenError(away)));
  EXPECT_THAT(std::string(OpenError(away).message()), HasSubstr("%2Fno%2Fsuch%2Ffolder:5432/" + database_));
}

TEST_F(PostgresStoreTest, PasswordsMayBeLeftToLibpq) {
  ScratchFolder folder;
  std::ofstream(folder.File("pgpass")) << "*:*:*:" << PostgresServer::kGuarded << ":" << PostgresServer::kPassword
                                       << "\n";
  std::filesystem::permissions(folder.File("pgpass"), std::filesystem::perms::owner_read);
  EXPECT_TRUE(absl::IsPermissionDenied(OpenError(server_.Url(database_, PostgresServer::kGuarded))));
  EXPECT_TRUE(OpenError(server_.Url(database_, PostgresServer::kGuarded) + "?passfile=" + folder.File("pgpass")).ok());
}

TEST_F(PostgresStoreTest, AUserWithLeastRightsServesWhatTheOwnerHasMade) {
  // What deploy/README.md says of roles.
  const std::string user = "c3pod_of_" + database_;
  server_.Sql("postgres", "CREATE ROLE " + user + " LOGIN");
  const std::string url = server_.Url(database_, user);
  absl::Status status = OpenError(url);
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("let the owner of schema c3po open the store once"));
  ASSERT_NE(Open(), nullptr);
  status = OpenError(url);
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("no right to use schema c3po"));
  Sql("GRANT USAGE ON SCHEMA c3po TO " + user +
      "; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA c3po TO " + user);
  const Store store = Open(url);
  ASSERT_NE(store, nullptr);
  ASSERT_TRUE(store->Add(MakeReferences("math", 0, 5)).ok());
  ASSERT_TRUE(store->PutArtifacts({{"math", "prior", "p"}}).ok());
  EXPECT_EQ(*store->Delete({MakeReference("math", 0).id}), 1);
  EXPECT_EQ(*store->WaitForGeneration(2, absl::Seconds(10)), 3);
  EXPECT_TRUE(store->CheckPlace().ok()) << store->CheckPlace();
  EXPECT_EQ(*store->DeleteCollection("math"), 4);
  EXPECT_THAT(server_.Sql(database_, "SELECT has_schema_privilege('" + user + "', 'c3po', 'CREATE')"),
              ElementsAre("f"));
}

TEST_F(PostgresStoreTest, OfServersThatStartTogetherOneMakesTheTables) {
  std::vector<std::thread> servers;
  std::atomic<int> opened{0};
  for (int i = 0; i < 6; ++i) {
    servers.emplace_back([&] {
      const auto store = PostgresReferenceStore::Open(url_);
      EXPECT_TRUE(store.ok()) << store.status();
      opened += store.ok();
    });
  }
  for (std::thread& each : servers) each.join();
  EXPECT_EQ(opened, 6);
  EXPECT_THAT(Sql("SELECT schema_version FROM state"), ElementsAre("1"));
}

TEST_F(PostgresStoreTest, SchemasOfOneDatabaseAreStoresOfTheirOwn) {
  const Store one = Open(url_), other = Open(url_ + "?c3po_schema=team_a");
  ASSERT_TRUE(one->Add(MakeReferences("math", 0, 5)).ok());
  EXPECT_THAT(*other->List("", "", 100), IsEmpty());
  ASSERT_TRUE(other->Add(MakeReferences("law", 0, 2)).ok());
  EXPECT_EQ(other->generation(), 1);
  EXPECT_THAT(*one->List("", "", 100), SizeIs(5));
}

TEST_F(PostgresStoreTest, WhatThisBuildCannotKeepIsRefusedByName) {
  StoreOptions options;
  options.pages_max = 100;
  absl::Status status = OpenError(url_, options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("pages_max"));
  ASSERT_NE(Open(), nullptr);
  Sql("UPDATE state SET schema_version = 2");
  status = OpenError(url_);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("schema c3po has version 2, this build reads 1 to 1"));
}

TEST_F(PostgresStoreTest, CopiesAreMadeByPostgresOwnTools) {
  const Store store = Open();
  const absl::Status status = store->StartBackup("/tmp/never").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("pg_dump --schema=c3po"));
  EXPECT_EQ(store->partial_backup_path(), "");
}

TEST_F(PostgresStoreTest, AStoreWhoseTablesAreGoneOrReplacedOrTakenBackIsLostUntilTheyAreBack) {
  const Store store = Open();
  ASSERT_TRUE(store->Add(MakeReferences("math", 0, 5)).ok());
  const auto expect_lost = [&](const char* what) {
    for (const absl::Status& status : {store->CheckPlace(), store->Add(MakeReferences("math", 5, 6)).status()}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(what));
    }
  };
  Sql("ALTER TABLE reference RENAME TO away");
  expect_lost("relation \"reference\" does not exist");
  Sql("ALTER TABLE away RENAME TO reference");
  EXPECT_TRUE(store->CheckPlace().ok()) << store->CheckPlace();
  Sql("UPDATE state SET store_id = 'another'");
  expect_lost("replaced by another store");
  EXPECT_THAT(Sql("SELECT count(*) FROM reference"), ElementsAre("5"));
  const Store again = Open();
  ASSERT_TRUE(again->Add(MakeReferences("math", 7, 8)).ok());
  Sql("UPDATE state SET generation = 1");
  const absl::Status status = again->CheckPlace();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("was taken back from generation 2 to 1"));
}

TEST_F(PostgresStoreTest, DamageThatAnotherServerPutsRightIsForgotten) {
  const Store store = Open(), other = Open();
  ASSERT_TRUE(store->Add(MakeReferences("math", 0, 3)).ok());
  Sql("UPDATE reference SET answer = 'another' WHERE id = '" + MakeReference("math", 1).id + "'");
  EXPECT_EQ(store->Get(MakeReference("math", 1).id).status().code(), absl::StatusCode::kDataLoss);
  ASSERT_TRUE(store->CheckPlace().ok());
  EXPECT_THAT(store->Damaged(), SizeIs(1));
  EXPECT_THAT(*other->Add({MakeReference("math", 1)}), ElementsAre(AddOutcome::kReplaced));
  ASSERT_TRUE(store->CheckPlace().ok());
  EXPECT_THAT(store->Damaged(), IsEmpty());
}

TEST_F(PostgresStoreTest, AnothersChangeIsAnnouncedAndOneThatIsNotIsSeenWithinAFewSeconds) {
  const Store store = Open(), other = Open();
  for (int i = 0; i < 5; ++i) {
    absl::Time committed;
    std::thread changes([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      ASSERT_TRUE(other->Add({MakeReference("math", i)}).ok());
      committed = SteadyNow();
    });
    EXPECT_EQ(*store->WaitForGeneration(i, absl::Seconds(60)), i + 1);
    const absl::Time told = SteadyNow();
    changes.join();
    EXPECT_LT(told - committed, absl::Milliseconds(700)) << "before the next poll";
  }
  std::thread changes([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    Sql("UPDATE state SET generation = generation + 1");
  });
  EXPECT_EQ(*store->WaitForGeneration(5, absl::Seconds(60)), 6);
  changes.join();
}

// Four servers of two threads each add, delete and put; two others follow meanwhile by pages of any size. No change may
// be missed, whatever the order in which transactions began and were committed.
TEST_F(PostgresStoreTest, FollowersOfManyWritersMissNothing) {
  constexpr int kServers = 4, kThreads = 2, kRounds = 25;
  ASSERT_NE(Open(), nullptr);
  std::atomic<bool> done{false};
  std::vector<StoreFollower> followers(2);
  std::vector<std::thread> follows, writers;
  for (size_t i = 0; i < followers.size(); ++i) {
    follows.emplace_back([&, i] {
      const Store store = Open();
      while (!done) {
        ASSERT_TRUE(store->WaitForGeneration(followers[i].generation, absl::Milliseconds(50)).ok());
        const auto page = store->ChangesSince(followers[i].generation, i == 0 ? 1 : 9);
        ASSERT_TRUE(page.ok()) << page.status();
        followers[i].Take(*page);
      }
      ASSERT_TRUE(followers[i].CatchUp(*store, 5).ok());
    });
  }
  for (int server = 0; server < kServers; ++server) {
    writers.emplace_back([&, server] {
      const Store store = Open();
      std::vector<std::thread> threads;
      for (int thread = 0; thread < kThreads; ++thread) {
        threads.emplace_back([&, thread] {
          const std::string collection = absl::StrCat("of-", server, "-", thread);
          for (int round = 0; round < kRounds; ++round) {
            ASSERT_TRUE(store->Add(MakeReferences(collection, round * 3, round * 3 + 3)).ok());
            ASSERT_EQ(*store->Delete({MakeReference(collection, round * 3).id}), 1);
            ASSERT_TRUE(store->PutArtifacts({{"shared", absl::StrCat("name-", round % 5), collection}}).ok());
          }
        });
      }
      for (std::thread& each : threads) each.join();
    });
  }
  for (std::thread& each : writers) each.join();
  done = true;
  for (std::thread& each : follows) each.join();
  const Store store = Open();
  EXPECT_EQ(store->generation(), kServers * kThreads * kRounds * 3) << "one each";
  std::map<std::string, std::string> stored;
  ASSERT_TRUE(store
                  ->ForEach([&](ReferenceRecord record) {
                    stored[record.id] = TextOf(record);
                    return absl::OkStatus();
                  })
                  .ok());
  EXPECT_THAT(stored, SizeIs(kServers * kThreads * kRounds * 2));
  for (const StoreFollower& follower : followers) {
    EXPECT_EQ(follower.generation, store->generation());
    EXPECT_EQ(follower.records, stored);
    EXPECT_THAT(follower.artifacts, SizeIs(5));
    EXPECT_GT(follower.pages, 10);
  }
}

}  // namespace
}  // namespace c3po
