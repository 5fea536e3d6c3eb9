#ifndef C3PO_TESTS_INDEX_STORE_ANY_STORE_H_
#define C3PO_TESTS_INDEX_STORE_ANY_STORE_H_

#include <gtest/gtest.h>
#include <sqlite3.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/store/reference_store.h"
#include "tests/index/store/postgres_server.h"
#include "tests/index/store/random_reference.h"

namespace c3po {

enum class StoreKind { kSqlite, kPostgres };

inline std::string KindName(const ::testing::TestParamInfo<StoreKind>& info) {
  return info.param == StoreKind::kSqlite ? "Sqlite" : "Postgres";
}

// Everything of a record, as text: equal texts are equal records.
inline std::string TextOf(const ReferenceRecord& record) {
  std::string text =
      absl::StrCat(record.id, "|", record.collection, "|", record.sample.id, "|", record.sample.prompt, "|",
                   record.sample.answer, "|", record.successful, "|", record.model_digest, "|", record.embedder_digest,
                   "|", record.pathway.layers, "|", record.pathway.experts, "|", record.created_unix_seconds);
  for (const std::string& choice : record.sample.choices) absl::StrAppend(&text, "|", choice);
  for (const auto& [key, value] : record.sample.metadata) absl::StrAppend(&text, "|", key, "=", value);
  for (const std::vector<float>* numbers : {&record.embedding, &record.pathway.weights}) {
    absl::StrAppend(&text, "|",
                    absl::string_view(reinterpret_cast<const char*>(numbers->data()), numbers->size() * sizeof(float)));
  }
  return text;
}

// A test of what every store does: an empty one of each kind, at a place of its own.
class AnyStoreTest : public ::testing::TestWithParam<StoreKind> {
 protected:
  AnyStoreTest() {
    if (GetParam() == StoreKind::kSqlite) {
      location_ = folder_.File("references.db");
    } else {
      database_ = PostgresServer::Shared().NewDatabase();
      location_ = PostgresServer::Shared().Url(database_);
    }
  }
  void SetUp() override { Reopen(); }
  void Reopen(const StoreOptions& options = StoreOptions()) {
    store_.reset();
    auto store = OpenReferenceStore(location_, options);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  // Runs SQL on the tables from outside, while the store is closed.
  void RunSql(const std::string& sql) {
    store_.reset();
    if (GetParam() == StoreKind::kPostgres) {
      PostgresServer::Shared().Sql(database_, sql);
      return;
    }
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open(location_.c_str(), &db), SQLITE_OK);
    ASSERT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(db);
    sqlite3_close(db);
  }

  std::vector<std::string> AllIds() {
    std::vector<std::string> ids;
    const absl::Status status = store_->ForEach([&](ReferenceRecord record) {
      ids.push_back(record.id);
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
    return ids;
  }

  ScratchFolder folder_;
  std::string location_, database_;
  std::unique_ptr<ReferenceStore> store_;
};

#define C3PO_TEST_EVERY_STORE(fixture) \
  INSTANTIATE_TEST_SUITE_P(EveryStore, fixture, ::testing::Values(StoreKind::kSqlite, StoreKind::kPostgres), KindName)

}  // namespace c3po

#endif  // C3PO_TESTS_INDEX_STORE_ANY_STORE_H_
