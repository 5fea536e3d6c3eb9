// Two catalogs of the same references, one with a device: whatever is asked of them, they answer the same.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "index/search/reference_catalog.h"
#include "tests/index/cuda/host_index_device.h"
#include "tests/index/search/random_filter.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

constexpr int kDimension = 8, kLayers = 3, kExperts = 4;

CatalogOptions Options(IndexDevice* device) {
  CatalogOptions options;
  options.model_digest = kModelDigest;
  options.embedder_digest = kEmbedderDigest;
  options.embedding_dimension = kDimension;
  options.moe_layers = kLayers;
  options.experts = kExperts;
  options.exact_references_max = 100000;  // On the host: the oracle is exact.
  options.index_device = device;
  return options;
}

struct Opened {
  Opened(const std::string& path, const CatalogOptions& options) : store(*OpenReferenceStore(path, StoreOptions())) {
    auto opened = ReferenceCatalog::Open(store.get(), options);
    EXPECT_TRUE(opened.ok()) << opened.status();
    catalog = *std::move(opened);
  }
  std::unique_ptr<ReferenceStore> store;
  std::unique_ptr<ReferenceCatalog> catalog;
};

void ExpectTheSame(const std::vector<Neighbor>& a, const std::vector<Neighbor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].reference_id, b[i].reference_id);
    EXPECT_EQ(a[i].distance, b[i].distance);
  }
}

void ExpectTheSame(const ReferenceCatalog& host, const ReferenceCatalog& device, std::mt19937& random) {
  for (const bool successful : {false, true}) {
    for (const int k : {1, 9}) {
      const std::vector<float> embedding = RandomUnitVector(random, kDimension);
      ExpectTheSame(*host.Search("a", embedding, k, successful), *device.Search("a", embedding, k, successful));
      const std::vector<int> layers = {2, 0};
      const Pathway rows = RandomPathway(random, 2, kExperts);
      ExpectTheSame(*host.SearchPathways("a", rows.weights, layers, k, successful),
                    *device.SearchPathways("a", rows.weights, layers, k, successful));
    }
    EXPECT_EQ(*host.OwnDistanceQuantile("a", successful, 0.9), *device.OwnDistanceQuantile("a", successful, 0.9));
  }
}

TEST(CatalogOnDevice, AnswersAsOnTheHostThroughChangesAndRestart) {
  std::mt19937 random(1);
  const ScratchFolder folder;
  HostIndexDevice host;
  {
    Opened plain(folder.File("plain.db"), Options(nullptr)),
        on_device(folder.File("device.db"), Options(host.device.get()));
    // Few references stay on the host; then each view moves, the successful one later, and pathways with them.
    for (const auto& [begin, end] : {std::pair(0, 60), {60, 290}, {290, 300}, {300, 480}}) {
      std::vector<ReferenceRecord> all = MakeReferences("a", begin, end);
      if (end > 60) {
        // Another embedding and outcome of references that are there.
        for (int number = 0; number < 6; ++number) {
          ReferenceRecord changed = MakeReference("a", number * 2);
          changed.embedding = RandomUnitVector(random, kDimension);
          changed.pathway = RandomPathway(random, kLayers, kExperts);
          changed.successful = !changed.successful;
          all.push_back(changed);
        }
      }
      ASSERT_TRUE(plain.catalog->Insert(all).ok());
      ASSERT_TRUE(on_device.catalog->Insert(all).ok());
      const IndexDeviceCounts before = host.device->counts();
      ExpectTheSame(*plain.catalog, *on_device.catalog, random);
      EXPECT_EQ(host.device->counts().device_queries > before.device_queries, end > 60);
      std::vector<std::string> erased;
      for (int number = end - 25; number < end; number += 3) erased.push_back(MakeReference("a", number).id);
      ASSERT_TRUE(plain.catalog->Erase(erased).ok());
      ASSERT_TRUE(on_device.catalog->Erase(erased).ok());
      ExpectTheSame(*plain.catalog, *on_device.catalog, random);
    }
    EXPECT_EQ(host.device->counts().refusals, 0);
  }
  Opened plain(folder.File("plain.db"), Options(nullptr)),
      on_device(folder.File("device.db"), Options(host.device.get()));
  const IndexDeviceCounts before = host.device->counts();
  ExpectTheSame(*plain.catalog, *on_device.catalog, random);
  EXPECT_EQ(host.device->counts().device_queries, before.device_queries + 8);  // All of them.
  EXPECT_EQ(*on_device.catalog->EraseCollection("a"), *plain.catalog->EraseCollection("a"));
  EXPECT_EQ(on_device.catalog->Search("a", std::vector<float>(kDimension), 1, false).status().code(),
            absl::StatusCode::kNotFound);
}

// Under filters, of one answer each: the scan on the device finds what the scan on the host does.
TEST(CatalogOnDevice, SearchesByAnswerAsOnTheHost) {
  std::mt19937 random(4);
  const ScratchFolder folder;
  HostIndexDevice host;
  Opened plain(folder.File("plain.db"), Options(nullptr)),
      on_device(folder.File("device.db"), Options(host.device.get()));
  std::vector<ReferenceRecord> records = MakeReferences("a", 0, 400);
  for (size_t i = 0; i < records.size(); ++i) {
    records[i].sample.choices = {" yes", " no", " maybe"};
    records[i].sample.answer = records[i].sample.choices[i % 7 % 3];
    records[i].id = ReferenceId("a", records[i].sample);
  }
  ASSERT_TRUE(plain.catalog->Insert(records).ok());
  ASSERT_TRUE(on_device.catalog->Insert(records).ok());
  const IndexDeviceCounts before = host.device->counts();
  for (const bool successful : {false, true}) {
    const std::vector<float> embedding = RandomUnitVector(random, kDimension);
    const auto a = *plain.catalog->SearchByAnswer("a", embedding, 5, successful, {records[7].id});
    const auto b = *on_device.catalog->SearchByAnswer("a", embedding, 5, successful, {records[7].id});
    ASSERT_EQ(a.size(), 3u);
    ASSERT_EQ(b.size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(a[i].answer, b[i].answer);
      ExpectTheSame(a[i].nearest, b[i].nearest);
    }
  }
  EXPECT_EQ(host.device->counts().device_queries, before.device_queries + 2 * 4);  // The nearest one, and each answer.
}

// Filters over metadata go to the device as bits of its rows, pathways included; once it has failed the host has them.
TEST(CatalogOnDevice, SearchesUnderFiltersAsOnTheHost) {
  std::mt19937 random(6);
  const ScratchFolder folder;
  HostIndexDevice host;
  Opened plain(folder.File("plain.db"), Options(nullptr)),
      on_device(folder.File("device.db"), Options(host.device.get()));
  std::vector<ReferenceRecord> records = MakeReferences("a", 0, 500);
  for (ReferenceRecord& record : records) record.sample.metadata = RandomMetadata(random);
  ASSERT_TRUE(plain.catalog->Insert(records).ok());
  ASSERT_TRUE(on_device.catalog->Insert(records).ok());
  const auto check = [&](int filters) {
    for (int i = 0; i < filters; ++i) {
      const MetadataFilter filter = RandomFilter(random);
      SCOPED_TRACE(FilterText(filter));
      for (const bool successful : {false, true}) {
        const std::vector<float> embedding = RandomUnitVector(random, kDimension);
        ExpectTheSame(*plain.catalog->Search("a", embedding, 7, successful, std::nullopt, &filter),
                      *on_device.catalog->Search("a", embedding, 7, successful, std::nullopt, &filter));
        const Pathway rows = RandomPathway(random, 2, kExperts);
        ExpectTheSame(*plain.catalog->SearchPathways("a", rows.weights, {2, 0}, 7, successful, &filter),
                      *on_device.catalog->SearchPathways("a", rows.weights, {2, 0}, 7, successful, &filter));
      }
    }
  };
  const IndexDeviceCounts before = host.device->counts();
  check(12);
  EXPECT_GT(host.device->counts().device_queries, before.device_queries + 20);
  EXPECT_EQ(host.device->counts().host_queries, before.host_queries);
  host.runtime.BreakAfter(0);
  check(4);
}

TEST(CatalogOnDevice, GraphsLieOnTheDeviceAndAreSavedAndLoaded) {
  std::mt19937 random(2);
  const ScratchFolder folder;
  HostIndexDevice host;
  CatalogOptions options = Options(host.device.get());
  options.exact_references_max = 100;
  options.device_references_max = 300;
  options.hnsw.m = 8;
  options.hnsw.ef_construction = 40;
  options.hnsw.ef_search = 24;
  options.graph_cache_folder = folder.File("graphs");
  CatalogOptions on_host = options;
  on_host.index_device = nullptr;
  on_host.graph_cache_folder = "";
  Opened plain(folder.File("plain.db"), on_host), on_device(folder.File("device.db"), options);
  for (const auto& [begin, end] : {std::pair(0, 280), {280, 320}}) {
    ASSERT_TRUE(plain.catalog->Insert(MakeReferences("a", begin, end)).ok());
    ASSERT_TRUE(on_device.catalog->Insert(MakeReferences("a", begin, end)).ok());
  }
  const IndexDeviceCounts before = host.device->counts();
  EXPECT_GT(on_device.catalog->MeasureRecall(5, 16), 0.95);
  EXPECT_GT(host.device->counts().device_queries, before.device_queries);
  ASSERT_TRUE(on_device.catalog->SaveGraphs().ok());
  on_device.catalog.reset();
  on_device.catalog = *ReferenceCatalog::Open(on_device.store.get(), options);
  EXPECT_EQ(on_device.catalog->startup().graphs_loaded, 2);  // The successful view's is on the host: it is too small.
  EXPECT_EQ(on_device.catalog->startup().graphs_built, 0);
  const std::vector<float> embedding = RandomUnitVector(random, kDimension);
  ExpectTheSame(*plain.catalog->Search("a", embedding, 5, false), *on_device.catalog->Search("a", embedding, 5, false));
}

// What has no room is searched on the host, and what the device held when it failed too.
TEST(CatalogOnDevice, HostServesWhatTheDeviceCannot) {
  std::mt19937 random(3);
  const ScratchFolder folder;
  HostIndexDevice host(/*budget_bytes=*/(int64_t{8} << 20) + (120 << 10));
  Opened plain(folder.File("plain.db"), Options(nullptr)),
      on_device(folder.File("device.db"), Options(host.device.get()));
  for (const auto& [begin, end] : {std::pair(0, 270), {270, 560}, {560, 570}}) {
    ASSERT_TRUE(plain.catalog->Insert(MakeReferences("a", begin, end)).ok());
    ASSERT_TRUE(on_device.catalog->Insert(MakeReferences("a", begin, end)).ok());
    ExpectTheSame(*plain.catalog, *on_device.catalog, random);
  }
  EXPECT_GT(host.device->counts().refusals, 0);
  EXPECT_THAT(host.device->last_refusal(), testing::HasSubstr("would exceed the budget"));
  host.runtime.BreakAfter(0);
  for (int round = 0; round < 2; ++round) {
    ExpectTheSame(*plain.catalog, *on_device.catalog, random);
    ASSERT_TRUE(plain.catalog->Insert(MakeReferences("a", 800 + round, 801 + round)).ok());
    ASSERT_TRUE(on_device.catalog->Insert(MakeReferences("a", 800 + round, 801 + round)).ok());
  }
}

}  // namespace
}  // namespace c3po
