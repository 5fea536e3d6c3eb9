#include "index/search/reference_catalog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <thread>
#include <utility>

#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

constexpr int kDimension = 8;

std::vector<std::string> Ids(const std::vector<Neighbor>& neighbors) {
  std::vector<std::string> ids;
  for (const Neighbor& neighbor : neighbors) ids.push_back(neighbor.reference_id);
  return ids;
}

// The nearest by a plain scan in double precision.
template <typename Distance>
std::vector<std::pair<double, std::string>> NaiveNearest(const std::vector<ReferenceRecord>& records,
                                                         bool successful_only, Distance distance) {
  std::vector<std::pair<double, std::string>> all;
  for (const ReferenceRecord& record : records) {
    if (record.successful || !successful_only) all.emplace_back(distance(record), record.id);
  }
  std::sort(all.begin(), all.end());
  return all;
}

double NaiveDistance(absl::Span<const float> a, absl::Span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return std::sqrt(sum);
}

class ReferenceCatalogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    options_.model_digest = kModelDigest;
    options_.embedder_digest = kEmbedderDigest;
    options_.embedding_dimension = kDimension;
    options_.moe_layers = 3;
    options_.experts = 4;
    options_.exact_references_max = 100;
    options_.graph_cache_folder = folder_.File("graphs");
    Restart();
  }

  void Restart() {
    catalog_.reset();
    store_.reset();
    auto store = OpenReferenceStore(folder_.File("references.db"));
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    OpenCatalog();
  }
  void OpenCatalog() {
    auto catalog = ReferenceCatalog::Open(store_.get(), options_);
    ASSERT_TRUE(catalog.ok()) << catalog.status();
    catalog_ = *std::move(catalog);
  }

  std::vector<Neighbor> Search(const std::string& collection, absl::Span<const float> query, int k,
                               bool successful_only) {
    auto found = catalog_->Search(collection, query, k, successful_only);
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() ? *found : std::vector<Neighbor>();
  }

  // Everything that a fixed set of searches returns.
  std::vector<std::pair<std::string, float>> Answers(const std::string& collection) {
    std::mt19937 random(33);
    std::vector<std::pair<std::string, float>> answers;
    for (int i = 0; i < 20; ++i) {
      const auto query = RandomUnitVector(random, kDimension);
      for (bool successful_only : {false, true}) {
        for (const Neighbor& n : Search(collection, query, 7, successful_only)) {
          answers.emplace_back(n.reference_id, n.distance);
        }
      }
    }
    return answers;
  }

  ScratchFolder folder_;
  CatalogOptions options_;
  std::unique_ptr<ReferenceStore> store_;
  std::unique_ptr<ReferenceCatalog> catalog_;
  std::mt19937 random_{20240711};
};

TEST_F(ReferenceCatalogTest, MeasuredRecallIsOneOfExactSearchAndTellsAPoorGraphFromAGoodOne) {
  EXPECT_EQ(catalog_->MeasureRecall(10, 16), 1.0);
  ASSERT_TRUE(catalog_->Insert(MakeReferences("math", 0, 90)).ok());
  EXPECT_EQ(catalog_->MeasureRecall(10, 16), 1.0);
  ASSERT_TRUE(catalog_->Insert(MakeReferences("math", 90, 3000)).ok());
  const double good = catalog_->MeasureRecall(10, 32);
  EXPECT_GE(good, 0.95);
  EXPECT_LE(good, 1.0);
  options_.hnsw = {/*m=*/2, /*ef_construction=*/2, /*ef_search=*/1, /*seed=*/7};
  options_.graph_cache_folder = "";
  OpenCatalog();
  const double poor = catalog_->MeasureRecall(10, 32);
  EXPECT_GT(poor, 0.0);
  EXPECT_LT(poor, good - 0.05);
}

TEST_F(ReferenceCatalogTest, SearchFindsWhatTheNaiveScanFinds) {
  const auto records = MakeReferences("math", 0, 90);
  ASSERT_TRUE(catalog_->Insert(records).ok());
  ASSERT_TRUE(catalog_->Insert(MakeReferences("other", 0, 90)).ok());
  for (int round = 0; round < 30; ++round) {
    const auto query = RandomUnitVector(random_, kDimension);
    for (bool successful_only : {false, true}) {
      const auto naive = NaiveNearest(records, successful_only,
                                      [&](const ReferenceRecord& r) { return NaiveDistance(query, r.embedding); });
      const auto found = Search("math", query, 5, successful_only);
      ASSERT_THAT(found, SizeIs(5));
      for (int i = 0; i < 5; ++i) {
        EXPECT_EQ(found[i].reference_id, naive[i].second);
        EXPECT_NEAR(found[i].distance, naive[i].first, 1e-6);
      }
      const float epsilon = static_cast<float>((naive[2].first + naive[3].first) / 2);
      EXPECT_THAT(*catalog_->SearchWithin("math", query, epsilon, 50, successful_only), SizeIs(3));
    }
  }
}

TEST_F(ReferenceCatalogTest, SearchPathwaysFindsWhatTheNaiveScanFindsInTheChosenLayers) {
  const auto records = MakeReferences("math", 0, 200);  // A graph for embeddings; pathways are always exact.
  ASSERT_TRUE(catalog_->Insert(records).ok());
  for (const std::vector<int>& layers : std::vector<std::vector<int>>{{0}, {1, 2}, {2, 0}, {0, 1, 2}}) {
    const Pathway query = RandomPathway(random_, static_cast<int>(layers.size()), 4);
    for (bool successful_only : {false, true}) {
      const auto naive = NaiveNearest(records, successful_only, [&](const ReferenceRecord& record) {
        double sum = 0;
        for (size_t c = 0; c < layers.size(); ++c) {
          sum += std::pow(NaiveDistance(query.Row(static_cast<int>(c)), record.pathway.Row(layers[c])), 2);
        }
        return std::sqrt(sum);
      });
      auto found = catalog_->SearchPathways("math", query.weights, layers, 9, successful_only);
      ASSERT_TRUE(found.ok()) << found.status();
      ASSERT_THAT(*found, SizeIs(9));
      for (int i = 0; i < 9; ++i) {
        EXPECT_EQ((*found)[i].reference_id, naive[i].second);
        EXPECT_NEAR((*found)[i].distance, naive[i].first, 1e-6);
      }
    }
  }
}

TEST_F(ReferenceCatalogTest, UnknownCollectionIsNotFoundAndNamed) {
  const auto query = RandomUnitVector(random_, kDimension);
  const absl::Status status = catalog_->Search("nowhere", query, 3, true).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "collection \"nowhere\" does not exist");
  EXPECT_EQ(catalog_->GetRecord("0123").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ReferenceCatalogTest, CollectionOfAnotherModelIsRefusedWithBothDigestsUntilImportedAgain) {
  auto records = MakeReferences("math", 0, 5);
  for (ReferenceRecord& record : records) record.model_digest = "model-old";
  ASSERT_TRUE(catalog_->Insert(records).ok());
  for (int restart = 0; restart < 2; ++restart) {
    const absl::Status status = catalog_->Search("math", records[0].embedding, 3, true).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(status.message(),
              "collection \"math\" has 5 references, none usable: they were made with model model-old, this server "
              "runs model-a; import them again");
    EXPECT_EQ(catalog_->SearchPathways("math", records[0].pathway.Row(0), {0}, 1, false).status(), status);
    EXPECT_EQ(catalog_->GetRecord(records[0].id).status().code(), absl::StatusCode::kFailedPrecondition);
    ASSERT_THAT(catalog_->Collections(), SizeIs(1));
    EXPECT_EQ(catalog_->Collections()[0].references, 5);
    EXPECT_EQ(catalog_->Collections()[0].usable, 0);
    Restart();
  }
  auto outcomes = catalog_->Insert(MakeReferences("math", 0, 5));
  ASSERT_TRUE(outcomes.ok()) << outcomes.status();
  EXPECT_EQ(*outcomes, std::vector<AddOutcome>(5, AddOutcome::kReplaced));
  EXPECT_THAT(Search("math", records[0].embedding, 10, false), SizeIs(5));
  EXPECT_EQ(catalog_->Collections()[0].references, 5);
  EXPECT_EQ(catalog_->Collections()[0].usable, 5);
  EXPECT_EQ(catalog_->Collections()[0].usable_and_successful, 3);
}

TEST_F(ReferenceCatalogTest, EachReasonForBeingUnusableIsSaid) {
  auto embedder = MakeReference("embedder", 1);
  embedder.embedder_digest = "embedder-old";
  auto layers = MakeReference("layers", 1);
  layers.pathway = RandomPathway(random_, 2, 4);
  ASSERT_TRUE(catalog_->Insert({embedder, layers, MakeReference("dimension", 1, 16)}).ok());
  const auto message = [&](const char* collection) {
    return std::string(catalog_->Search(collection, embedder.embedding, 1, false).status().message());
  };
  EXPECT_THAT(message("embedder"), HasSubstr("embedded with embedder-old, this server embeds with embedder-a"));
  EXPECT_THAT(message("layers"), HasSubstr("their pathways are 2 x 4, this server's are 3 x 4"));
  EXPECT_THAT(message("dimension"), HasSubstr("their embeddings have 16 dimensions, this server's have 8"));
}

TEST_F(ReferenceCatalogTest, ReplacedByAnotherModelsRecordIsNoLongerFound) {
  for (int count : {50, 300}) {  // Exact, then a graph.
    const std::string collection = absl::StrCat("math-", count);
    auto records = MakeReferences(collection, 0, count);
    ASSERT_TRUE(catalog_->Insert(records).ok());
    for (int i = 0; i < 20; ++i) records[i].model_digest = "model-new";
    ASSERT_TRUE(catalog_->Insert(absl::MakeSpan(records).first(20)).ok());
    for (int i = 0; i < count; ++i) {
      const auto nearest = Search(collection, records[i].embedding, 1, false);
      ASSERT_THAT(nearest, SizeIs(1));
      EXPECT_EQ(nearest[0].reference_id == records[i].id, i >= 20) << i;
    }
    EXPECT_THAT(Search(collection, records[0].embedding, 1000, false), SizeIs(count - 20));
  }
}

TEST_F(ReferenceCatalogTest, NoSuccessfulReferenceGivesAnEmptyResult) {
  auto record = MakeReference("math", 0);
  ASSERT_FALSE(record.successful);
  ASSERT_TRUE(catalog_->Insert({record}).ok());
  EXPECT_THAT(Search("math", record.embedding, 3, true), IsEmpty());
  EXPECT_THAT(Search("math", record.embedding, 3, false), SizeIs(1));
}

TEST_F(ReferenceCatalogTest, BadArgumentsAreNamed) {
  const auto record = MakeReference("math", 1);
  ASSERT_TRUE(catalog_->Insert({record}).ok());
  const auto message = [](const auto& result) {
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(result.status().message());
  };
  const std::vector<float> short_query(3, 0.5f);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> nan_query(kDimension, nan);
  EXPECT_EQ(message(catalog_->Search("math", record.embedding, 0, true)), "k: 0, must be at least 1");
  EXPECT_EQ(message(catalog_->Search("math", short_query, 1, true)), "embedding: has 3 dimensions, not 8");
  EXPECT_EQ(message(catalog_->Search("math", nan_query, 1, true)), "embedding[0]: not finite");
  EXPECT_THAT(message(catalog_->SearchWithin("math", record.embedding, nan, 1, true)), StartsWith("epsilon: "));
  const auto row = record.pathway.Row(0);
  EXPECT_EQ(message(catalog_->SearchPathways("math", row, {0, 1}, 1, true)), "rows: has 4 dimensions, not 8");
  EXPECT_EQ(message(catalog_->SearchPathways("math", row, {3}, 1, true)), "layers[0]: 3, must be in [0, 3)");
  EXPECT_EQ(message(catalog_->SearchPathways("math", row, {}, 1, true)), "layers: must not be empty");
  EXPECT_EQ(message(catalog_->SearchPathways("math", row, {1, 1}, 1, true)), "layers[1]: 1 is repeated");
  EXPECT_EQ(message(catalog_->SearchPathways("math", row, {1}, 0, true)), "k: 0, must be at least 1");

  auto bad = MakeReference("math", 2);
  bad.embedding[0] = nan;
  EXPECT_EQ(message(catalog_->Insert({MakeReference("math", 3), bad})), "records[1].embedding[0]: not finite");
  EXPECT_EQ(catalog_->Collections()[0].references, 1);

  CatalogOptions options = options_;
  options.experts = 0;
  EXPECT_THAT(message(ReferenceCatalog::Open(store_.get(), options)), StartsWith("catalog.experts: 0"));
  options = options_;
  options.hnsw.m = 0;
  EXPECT_THAT(message(ReferenceCatalog::Open(store_.get(), options)), StartsWith("hnsw.m: 0"));
}

TEST_F(ReferenceCatalogTest, ErasedReferencesAreGoneAndHeldRecordsStay) {
  const auto records = MakeReferences("math", 0, 300);  // A graph.
  ASSERT_TRUE(catalog_->Insert(records).ok());
  auto held = catalog_->GetRecord(records[4].id);
  auto pathway = catalog_->GetPathway(records[4].id);
  ASSERT_TRUE(held.ok() && pathway.ok());
  EXPECT_EQ(catalog_->generation(), store_->generation());

  EXPECT_EQ(*catalog_->Erase({records[4].id, "unknown", records[5].id}), 2);
  EXPECT_EQ(catalog_->generation(), 2);
  EXPECT_EQ(catalog_->GetRecord(records[4].id).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ((*held)->sample.prompt, records[4].sample.prompt);
  EXPECT_EQ((*pathway)->weights, records[4].pathway.weights);
  const auto ids = Ids(Search("math", records[4].embedding, 300, false));
  EXPECT_THAT(ids, SizeIs(298));
  EXPECT_THAT(ids, ::testing::Not(::testing::Contains(records[4].id)));

  EXPECT_EQ(*catalog_->EraseCollection("math"), 298);
  EXPECT_EQ(catalog_->Search("math", records[0].embedding, 3, false).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(catalog_->Collections(), IsEmpty());
  ASSERT_TRUE(catalog_->Insert({records[4]}).ok());
  EXPECT_THAT(Ids(Search("math", records[4].embedding, 3, false)), ::testing::ElementsAre(records[4].id));
}

TEST_F(ReferenceCatalogTest, MostOfALargeCollectionErasedLeavesTheRestFindable) {
  options_.graph_cache_folder.clear();
  OpenCatalog();
  const auto records = MakeReferences("math", 0, 3000);
  ASSERT_TRUE(catalog_->Insert(records).ok());
  std::vector<std::string> ids;
  for (int i = 0; i < 2500; ++i) ids.push_back(records[i].id);
  EXPECT_EQ(*catalog_->Erase(ids), 2500);
  for (int i = 2500; i < 3000; ++i) {
    EXPECT_EQ(Search("math", records[i].embedding, 1, false)[0].reference_id, records[i].id);
  }
  EXPECT_THAT(Search("math", records[0].embedding, 5000, false), SizeIs(500));
}

TEST_F(ReferenceCatalogTest, RestartAnswersAsBefore) {
  ASSERT_TRUE(catalog_->Insert(MakeReferences("small", 0, 60)).ok());
  ASSERT_TRUE(catalog_->Insert(MakeReferences("large", 0, 400)).ok());
  ASSERT_TRUE(catalog_->Insert(MakeReferences("large", 400, 450)).ok());
  ASSERT_TRUE(catalog_->Erase({MakeReference("large", 7).id, MakeReference("small", 8).id}).ok());
  const auto small = Answers("small");
  const auto large = Answers("large");
  ASSERT_TRUE(catalog_->SaveGraphs().ok());
  Restart();
  EXPECT_EQ(catalog_->startup().graphs_loaded, 2) << "all and successful of `large`";
  EXPECT_EQ(catalog_->startup().graphs_built, 0);
  EXPECT_THAT(catalog_->startup().refused_files, IsEmpty());
  EXPECT_EQ(catalog_->generation(), 4);
  EXPECT_EQ(Answers("small"), small);
  EXPECT_EQ(Answers("large"), large);
  EXPECT_EQ(catalog_->Collections().size(), 2u);
  EXPECT_EQ(catalog_->Collections()[0].references, 449);
}

TEST_F(ReferenceCatalogTest, StaleOrDamagedGraphsAreRefusedAndBuiltAnew) {
  const auto records = MakeReferences("math", 0, 300);
  ASSERT_TRUE(catalog_->Insert(records).ok());
  ASSERT_TRUE(catalog_->SaveGraphs().ok());
  ASSERT_TRUE(catalog_->Insert(MakeReferences("math", 300, 301)).ok());
  const auto before = Answers("math");
  Restart();
  EXPECT_EQ(catalog_->startup().graphs_loaded, 0);
  EXPECT_EQ(catalog_->startup().graphs_built, 2);
  ASSERT_THAT(catalog_->startup().refused_files, SizeIs(2));
  EXPECT_THAT(catalog_->startup().refused_files[0], HasSubstr("of generation 1, the store is at 2"));
  EXPECT_EQ(Answers("math"), before);

  ASSERT_TRUE(catalog_->SaveGraphs().ok());
  for (const auto& file : std::filesystem::directory_iterator(options_.graph_cache_folder)) {
    std::filesystem::resize_file(file.path(), std::filesystem::file_size(file.path()) / 2);
  }
  Restart();
  EXPECT_EQ(catalog_->startup().graphs_built, 2);
  EXPECT_THAT(catalog_->startup().refused_files[0], HasSubstr("cut"));
  EXPECT_EQ(Answers("math"), before);

  // What is no graph at all costs neither memory nor time, and is replaced by the next graphs.
  ASSERT_TRUE(catalog_->SaveGraphs().ok());
  bool fifo = false;
  for (const auto& file : std::filesystem::directory_iterator(options_.graph_cache_folder)) {
    std::filesystem::resize_file(file.path(), uintmax_t{40} << 30);
    if (std::exchange(fifo, true)) continue;
    std::filesystem::remove(file.path());
    ASSERT_EQ(mkfifo(file.path().c_str(), 0600), 0);
  }
  Restart();
  EXPECT_EQ(catalog_->startup().graphs_built, 2);
  ASSERT_THAT(catalog_->startup().refused_files, SizeIs(2));
  EXPECT_THAT(catalog_->startup().refused_files, Contains(HasSubstr("is a FIFO")));
  EXPECT_THAT(catalog_->startup().refused_files, Contains(HasSubstr("has 42949672960 bytes")));
  EXPECT_EQ(Answers("math"), before);
  ASSERT_TRUE(catalog_->SaveGraphs().ok());
  Restart();
  EXPECT_EQ(catalog_->startup().graphs_loaded, 2);
}

TEST_F(ReferenceCatalogTest, GraphsOfAnotherStoreAtTheSameGenerationAreRefused) {
  ASSERT_TRUE(catalog_->Insert(MakeReferences("math", 0, 300)).ok());
  ASSERT_TRUE(catalog_->SaveGraphs().ok());
  auto other_store = OpenReferenceStore(folder_.File("other.db"));
  ASSERT_TRUE(other_store.ok());
  ASSERT_TRUE((*other_store)->Add(MakeReferences("math", 2, 302)).ok());
  auto other = ReferenceCatalog::Open(other_store->get(), options_);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ((*other)->generation(), catalog_->generation());
  EXPECT_EQ((*other)->startup().graphs_built, 2);
  EXPECT_THAT((*other)->startup().refused_files[0], HasSubstr("holds other embeddings"));
}

TEST_F(ReferenceCatalogTest, FullStoreRefusesABatchAndTheViewsStayAsTheyWere) {
  catalog_.reset();
  store_.reset();
  StoreOptions store_options;
  store_options.pages_max = 60;
  store_ = *OpenReferenceStore(folder_.File("full.db"), store_options);
  OpenCatalog();
  int inserted = 0;
  absl::Status status;
  for (; status.ok() && inserted < 10000; inserted += 10) {
    status = catalog_->Insert(MakeReferences("math", inserted, inserted + 10)).status();
  }
  inserted -= 10;
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  const auto refused = MakeReference("math", inserted);
  EXPECT_THAT(Search("math", refused.embedding, 10000, false), SizeIs(inserted));
  EXPECT_EQ(catalog_->GetRecord(refused.id).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(catalog_->generation(), store_->generation());
  EXPECT_EQ(catalog_->Collections()[0].references, inserted);
}

// Batches of one fixed size come and go while others search: every search counts whole batches, in both spaces, across
// the change from exact search to a graph.
TEST_F(ReferenceCatalogTest, SearchesSeeEachBatchWholeOrNotAtAll) {
  constexpr int kBatch = 12, kBatches = 30;
  ASSERT_TRUE(catalog_->Insert(MakeReferences("math", 0, kBatch)).ok());
  std::atomic<bool> stop = false;
  std::atomic<int> torn = 0, searches = 0;
  std::vector<std::thread> searchers;
  for (int t = 0; t < 3; ++t) {
    searchers.emplace_back([&, t] {
      std::mt19937 random(100 + t);
      while (!stop || searches < 50) {
        const auto query = RandomUnitVector(random, kDimension);
        auto all = catalog_->Search("math", query, 10000, false);
        auto successful = catalog_->Search("math", query, 10000, true);
        auto few = catalog_->Search("math", query, 5, true);
        const Pathway rows = RandomPathway(random, 1, 4);
        auto pathways = catalog_->SearchPathways("math", rows.weights, {1}, 10000, false);
        if (!all.ok() || !successful.ok() || !few.ok() || !pathways.ok()) {
          ++torn;
          continue;
        }
        // Of twelve in a row, four are not successful.
        if (all->size() % kBatch != 0 || pathways->size() % kBatch != 0) ++torn;
        if (successful->size() % (kBatch * 2 / 3) != 0 || few->size() != 5) ++torn;
        if (!catalog_->GetRecord((*all)[0].reference_id).ok() && !stop) continue;  // Erased meanwhile.
        ++searches;
      }
    });
  }
  for (int batch = 1; batch < kBatches; ++batch) {
    const auto records = MakeReferences("math", batch * kBatch, (batch + 1) * kBatch);
    ASSERT_TRUE(catalog_->Insert(records).ok());
    if (batch % 3 != 2) continue;
    std::vector<std::string> ids;
    for (const ReferenceRecord& record : records) ids.push_back(record.id);
    ASSERT_TRUE(catalog_->Erase(ids).ok());
  }
  stop = true;
  for (std::thread& thread : searchers) thread.join();
  EXPECT_EQ(torn, 0);
  EXPECT_GE(searches, 50);
  EXPECT_EQ(catalog_->generation(), store_->generation());
  EXPECT_EQ(catalog_->Collections()[0].references, kBatch * (kBatches - (kBatches - 1 + 1) / 3));
}

TEST_F(ReferenceCatalogTest, WritersOfSeveralCollectionsAndSavesRunBesideEachOther) {
  std::atomic<int> failures = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      const std::string collection = absl::StrCat("collection-", t);
      for (int i = 0; i < 15; ++i) {
        const auto records = MakeReferences(collection, i * 10, i * 10 + 10);
        if (!catalog_->Insert(records).ok()) ++failures;
        auto found = catalog_->Search(collection, records[3].embedding, 1, false);
        if (!found.ok() || (*found)[0].reference_id != records[3].id) ++failures;
        if (i % 5 == 4 && !catalog_->SaveGraphs().ok()) ++failures;
        if (!catalog_->Erase({records[0].id}).ok()) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(catalog_->generation(), 3 * 15 * 2);
  for (const CatalogCollection& collection : catalog_->Collections()) EXPECT_EQ(collection.usable, 135);
}

TEST_F(ReferenceCatalogTest, ReferencesOfOnePromptAreFoundWhateverMadeThemAndWhateverChanges) {
  std::vector<ReferenceRecord> records = MakeReferences("a", 0, 4);
  const std::string prompt = records[0].sample.prompt;
  records[1].sample.prompt = prompt;
  records[1].id = ReferenceId("a", records[1].sample);
  records[2].sample.prompt = prompt;
  records[2].id = ReferenceId("a", records[2].sample);
  records[2].model_digest = "model-b";  // Not usable; its prompt is in the store alone.
  ReferenceRecord elsewhere = MakeReference("b", 0);
  records.push_back(elsewhere);
  ASSERT_TRUE(catalog_->Insert(records).ok());
  const auto with_prompt = [&](const std::string& collection, const std::string& wanted) {
    std::vector<std::string> ids;
    const auto found = catalog_->WithPrompt(collection, wanted);
    EXPECT_TRUE(found.ok()) << found.status();
    for (const ReferenceRecord& record : *found) ids.push_back(record.id);
    return ids;
  };
  for (int round = 0; round < 2; ++round) {
    EXPECT_THAT(with_prompt("a", prompt), ElementsAre(records[0].id, records[1].id, records[2].id)) << round;
    EXPECT_THAT(with_prompt("b", prompt), ElementsAre(elsewhere.id));
    EXPECT_THAT(with_prompt("a", "unknown"), SizeIs(0));
    EXPECT_TRUE(catalog_->Holds(records[2].id));
    EXPECT_FALSE(catalog_->Holds("unknown"));
    Restart();
  }
  ASSERT_TRUE(catalog_->Erase({records[0].id, records[2].id}).ok());
  EXPECT_THAT(with_prompt("a", prompt), ElementsAre(records[1].id));
  ASSERT_TRUE(catalog_->EraseCollection("a").ok());
  EXPECT_THAT(with_prompt("a", prompt), SizeIs(0));
  EXPECT_FALSE(catalog_->Holds(records[1].id));
}

TEST_F(ReferenceCatalogTest, AReferenceWithAnIdOfItsOwnIsFoundByWhatItHoldsNow) {
  ReferenceRecord record = MakeReference("a", 0);
  record.sample.id = "q.1";
  record.id = ReferenceId("a", record.sample);
  ReferenceRecord second = MakeReference("a", 1);
  second.sample.id = "q.2";
  second.id = ReferenceId("a", second.sample);
  ASSERT_TRUE(catalog_->Insert({record, second}).ok());
  const std::vector<float> before = record.embedding;
  record = MakeReference("a", 5);
  record.sample.id = "q.1";
  record.id = ReferenceId("a", record.sample);
  ASSERT_THAT(*catalog_->Insert({record}), ElementsAre(AddOutcome::kReplaced));
  for (int round = 0; round < 2; ++round) {
    EXPECT_THAT(Ids(Search("a", record.embedding, 1, false)), ElementsAre("a:q.1"));
    EXPECT_LT(Search("a", record.embedding, 1, false)[0].distance, 1e-3);
    EXPECT_EQ(Search("a", before, 5, false).size(), 2u);
    EXPECT_EQ((*catalog_->GetRecord("a:q.1"))->sample.prompt, record.sample.prompt);
    EXPECT_EQ((*catalog_->GetRecord("a:q.1"))->sample.id, "q.1");
    Restart();
  }
  EXPECT_EQ(catalog_->Some("a", 1).size(), 1u);
  EXPECT_EQ(catalog_->Some("a", 9).size(), 2u);
  EXPECT_EQ(catalog_->Some("nobody", 9).size(), 0u);
}

}  // namespace
}  // namespace c3po
