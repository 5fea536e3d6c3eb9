#include "server/rpc/store_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <filesystem>
#include <functional>
#include <string>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "index/base/steady_time.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class StoreWatchTest : public testing::Test {
 protected:
  StoreWatchTest() : store_(OpenReferenceStore(path_).value()) {
    EXPECT_TRUE(store_->Add(MakeReferences("math", 0, 50)).ok());
    EXPECT_TRUE(store_->PutArtifacts({{"math", "profile", "k = 3"}}).ok());
  }
  void RunSql(const std::string& sql) {
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open(path_.c_str(), &db), SQLITE_OK);
    ASSERT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(db);
    sqlite3_close(db);
  }
  // The watch looks by itself; how soon decides nothing.
  static bool Becomes(const std::function<bool()>& holds) {
    for (const absl::Time end = SteadyNow() + absl::Seconds(60); SteadyNow() < end;
         absl::SleepFor(absl::Milliseconds(2))) {
      if (holds()) return true;
    }
    return holds();
  }
  std::string Text() const { return metrics_.PrometheusText(); }

  ScratchFolder folder_;
  const std::string path_ = folder_.File("store.db");
  std::unique_ptr<ReferenceStore> store_;
  Metrics metrics_{"model", "0"};
};

TEST_F(StoreWatchTest, AStoreThatIsTakenAwayIsToldUntilItIsBack) {
  StoreWatch watch(store_.get(), &metrics_, absl::Milliseconds(1));
  EXPECT_FALSE(watch.lost());
  EXPECT_THAT(watch.Warnings(), IsEmpty());
  EXPECT_THAT(Text(), HasSubstr("c3po_store_lost 0\n"));
  std::filesystem::rename(path_, folder_.File("away.db"));
  EXPECT_TRUE(Becomes([&] { return watch.lost() && !watch.Warnings().empty(); }));
  EXPECT_THAT(watch.Warnings(), ElementsAre(AllOf(HasSubstr("store " + path_), HasSubstr("was deleted or moved"))));
  EXPECT_THAT(Text(), HasSubstr("c3po_store_lost 1\n"));
  std::filesystem::rename(folder_.File("away.db"), path_);
  EXPECT_TRUE(Becomes([&] { return !watch.lost() && watch.Warnings().empty(); }));
  EXPECT_THAT(Text(), HasSubstr("c3po_store_lost 0\n"));
}

TEST_F(StoreWatchTest, DamagedRowsAreCountedWithoutNamesUntilTheyAreWrittenAnew) {
  const std::string id = MakeReference("math", 7).id;
  store_.reset();
  RunSql("UPDATE reference SET answer = 'x' WHERE id = '" + id + "'; UPDATE artifact SET value = 'k = 4'");
  store_ = OpenReferenceStore(path_).value();
  StoreWatch watch(store_.get(), &metrics_, absl::Milliseconds(1));
  EXPECT_THAT(Text(), HasSubstr("c3po_store_damaged_rows{kind=\"artifact\"} 1\n"));
  EXPECT_FALSE(store_->Get(id).ok());
  EXPECT_TRUE(Becomes([&] { return absl::StrContains(Text(), "c3po_store_damaged_rows{kind=\"reference\"} 1\n"); }));
  EXPECT_FALSE(watch.lost());
  // Everybody may see the warnings: they name nothing.
  EXPECT_THAT(watch.Warnings(), ElementsAre(AllOf(HasSubstr("1 references and 1 artifacts are damaged"),
                                                  Not(HasSubstr(id)), Not(HasSubstr("math")))));
  ASSERT_TRUE(store_->Add({MakeReference("math", 7)}).ok());
  ASSERT_TRUE(store_->PutArtifacts({{"math", "profile", "k = 5"}}).ok());
  EXPECT_TRUE(Becomes([&] { return watch.Warnings().empty(); }));
  EXPECT_THAT(Text(), Not(HasSubstr("c3po_store_damaged_rows{kind=\"reference\"} 1\n")));
}

}  // namespace
}  // namespace c3po
