#ifndef C3PO_TESTS_INDEX_SEARCH_CATALOG_SERVERS_H_
#define C3PO_TESTS_INDEX_SEARCH_CATALOG_SERVERS_H_

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "index/search/reference_catalog.h"
#include "tests/index/store/any_store.h"
#include "tests/index/store/random_reference.h"
#include "tests/index/store/shared_store.h"

namespace c3po {

inline constexpr int kDimension = 8, kHidden = 6;

// The whole of a store, as a plain map.
using State = std::map<std::string, ReferenceRecord>;

// Two servers over one store: a file that they share in this process, or a database.
class CatalogServersTest : public testing::TestWithParam<StoreKind> {
 protected:
  // A server: its view of the store, its feed, its catalog.
  struct Server {
    std::unique_ptr<ReferenceStore> connection;  // Null: `store` is of the file that is open here.
    std::unique_ptr<SharedStore> store;
    std::unique_ptr<StoreFeed> feed;
    std::unique_ptr<ReferenceCatalog> catalog;
    ReferenceCatalog* operator->() const { return catalog.get(); }
  };

  CatalogServersTest() {
    options_.model_digest = kModelDigest;
    options_.embedder_digest = kEmbedderDigest;
    options_.embedding_dimension = kDimension;
    options_.moe_layers = 3;
    options_.experts = 4;
    options_.hidden_size = kHidden;
    options_.exact_references_max = 60;
    OpenStore({});
  }
  void OpenStore(const StoreOptions& options) {
    servers_.clear();
    store_options_ = options;
    location_ = GetParam() == StoreKind::kSqlite ? folder_.File(std::to_string(++opened_))
                                                 : PostgresServer::Shared().Url(PostgresServer::Shared().NewDatabase());
    store_ = *OpenReferenceStore(location_, options);
    for (int i = 0; i < 2; ++i) servers_.push_back(StartServer());
  }
  Server StartServer() {
    Server server;
    if (GetParam() == StoreKind::kPostgres) server.connection = *OpenReferenceStore(location_, store_options_);
    server.store = std::make_unique<SharedStore>(server.connection ? server.connection.get() : store_.get());
    server.feed = std::make_unique<StoreFeed>(server.store.get());
    server.catalog = *ReferenceCatalog::Open(server.feed.get(), options_);
    return server;
  }
  Server& a() { return servers_[0]; }
  Server& b() { return servers_[1]; }

  // The store's, whoever raised it.
  int64_t Latest() const {
    return *store_->WaitForGeneration(std::numeric_limits<int64_t>::max(), absl::ZeroDuration());
  }

  State StateNow() const {
    State state;
    const std::vector<ReferenceRecord> records = *store_->List("", "", 100000);
    for (const ReferenceRecord& record : records) state[record.id] = record;
    return state;
  }

  // The k nearest by a plain scan, as the catalog orders them: by distance. The graph's may miss some, so that what it
  // finds is looked for here.
  static void ExpectAnswersOf(const ReferenceCatalog& catalog, const State& state, std::mt19937& random) {
    std::map<std::string, std::vector<const ReferenceRecord*>> collections;
    for (const auto& [id, record] : state) collections[record.collection].push_back(&record);
    const auto known = catalog.Collections();
    ASSERT_EQ(known.size(), collections.size());
    for (const CatalogCollection& collection : known) {
      const auto& members = collections[collection.name];
      EXPECT_EQ(collection.references, static_cast<int64_t>(members.size()));
      const auto query = RandomUnitVector(random, kDimension);
      for (const bool successful_only : {false, true}) {
        std::map<std::string, double> expected;
        for (const ReferenceRecord* record : members) {
          if (record->model_digest != kModelDigest || (successful_only && !record->successful)) continue;
          double sum = 0;
          for (int i = 0; i < kDimension; ++i) sum += std::pow(double{query[i]} - record->embedding[i], 2);
          expected[record->id] = std::sqrt(sum);
        }
        const auto found = catalog.Search(collection.name, query, 100000, successful_only);
        if (collection.usable == 0) {
          EXPECT_EQ(found.status().code(), absl::StatusCode::kFailedPrecondition);
          continue;
        }
        ASSERT_TRUE(found.ok()) << found.status();
        ASSERT_EQ(found->size(), expected.size()) << collection.name;
        float last = 0;
        for (const Neighbor& neighbor : *found) {
          ASSERT_EQ(expected.count(neighbor.reference_id), 1u);
          EXPECT_NEAR(neighbor.distance, expected[neighbor.reference_id], 1e-5);
          EXPECT_GE(neighbor.distance, last);
          last = neighbor.distance;
          EXPECT_EQ((*catalog.GetRecord(neighbor.reference_id))->sample.prompt,
                    state.at(neighbor.reference_id).sample.prompt);
        }
      }
    }
  }

  // As a client brings them: with an id of its own, whose content may change, or of another model.
  static ReferenceRecord RandomRecord(std::mt19937& random) {
    const int number = static_cast<int>(random() % 150);
    ReferenceRecord record = MakeReference(absl::StrCat("c", number % 3), static_cast<int>(random() % 150));
    if (number % 2 == 0) record.sample.id = std::to_string(number);
    record.id = ReferenceId(record.collection, record.sample);
    if (random() % 12 == 0) record.model_digest = "model-b";
    return record;
  }

  ScratchFolder folder_;
  int opened_ = 0;
  CatalogOptions options_;
  StoreOptions store_options_;
  std::string location_;
  std::unique_ptr<ReferenceStore> store_;
  std::vector<Server> servers_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_INDEX_SEARCH_CATALOG_SERVERS_H_
