// Opening and searching; how the store's content and its changes reach the searches is told in
// reference_catalog_changes.cc.

#include "index/search/reference_catalog.h"

#include <algorithm>
#include <climits>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "index/base/number_text.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"
#include "index/search/distance.h"
#include "index/search/nearest_list.h"

namespace c3po {
namespace {

absl::Status CheckPositive(absl::string_view name, int value) {
  if (value >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("catalog.", name, ": ", value, ", must be at least 1"));
}

absl::Status CheckOptions(const CatalogOptions& options) {
  if (options.model_digest.empty()) return absl::InvalidArgumentError("catalog.model_digest: must not be empty");
  if (options.embedder_digest.empty()) return absl::InvalidArgumentError("catalog.embedder_digest: must not be empty");
  C3PO_RETURN_IF_ERROR(CheckPositive("embedding_dimension", options.embedding_dimension));
  C3PO_RETURN_IF_ERROR(CheckPositive("moe_layers", options.moe_layers));
  C3PO_RETURN_IF_ERROR(CheckPositive("experts", options.experts));
  if (options.exact_references_max < 0) {
    return absl::InvalidArgumentError("catalog.exact_references_max: must not be negative");
  }
  return absl::OkStatus();
}

absl::Status CheckLayers(absl::Span<const int> layers, int moe_layers) {
  if (layers.empty()) return absl::InvalidArgumentError("layers: must not be empty");
  absl::flat_hash_set<int> seen;
  for (size_t i = 0; i < layers.size(); ++i) {
    const int layer = layers[i];
    const bool exists = layer >= 0 && layer < moe_layers;
    if (exists && seen.insert(layer).second) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "layers[", i, "]: ", layer, exists ? " is repeated" : absl::StrCat(", must be in [0, ", moe_layers, ")")));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ReferenceCatalog>> ReferenceCatalog::Open(StoreFeed* feed,
                                                                         const CatalogOptions& options) {
  C3PO_RETURN_IF_ERROR(CheckOptions(options));
  C3PO_RETURN_IF_ERROR(IndexBuilder::Check(OptionsOfIndexes(options)));
  std::unique_ptr<ReferenceCatalog> catalog(new ReferenceCatalog(feed, options));
  C3PO_RETURN_IF_ERROR(feed->Join(catalog.get()));
  return catalog;
}

absl::StatusOr<std::unique_ptr<ReferenceCatalog>> ReferenceCatalog::Open(ReferenceStore* store,
                                                                         const CatalogOptions& options) {
  auto feed = std::make_unique<StoreFeed>(store);
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<ReferenceCatalog> catalog, Open(feed.get(), options));
  catalog->own_feed_ = std::move(feed);
  return catalog;
}

ReferenceCatalog::~ReferenceCatalog() { feed_->Leave(this); }

std::string ReferenceCatalog::WhyUnusable(const ReferenceRecord& record) const {
  if (record.model_digest != options_.model_digest) {
    return absl::StrCat("they were made with model ", record.model_digest, ", this server runs ",
                        options_.model_digest);
  }
  if (record.embedder_digest != options_.embedder_digest) {
    return absl::StrCat("they were embedded with ", record.embedder_digest, ", this server embeds with ",
                        options_.embedder_digest);
  }
  if (record.embedding.size() != static_cast<size_t>(options_.embedding_dimension)) {
    return absl::StrCat("their embeddings have ", record.embedding.size(), " dimensions, this server's have ",
                        options_.embedding_dimension);
  }
  if (record.pathway.layers != options_.moe_layers || record.pathway.experts != options_.experts) {
    return absl::StrCat("their pathways are ", record.pathway.layers, " x ", record.pathway.experts,
                        ", this server's are ", options_.moe_layers, " x ", options_.experts);
  }
  return "";
}

std::string ReferenceCatalog::GraphPath(absl::string_view collection, ViewKind kind) const {
  const std::string name =
      absl::StrCat(Sha256::HexOf(collection).substr(0, 32), kind == kAll ? "-all.hnsw" : "-successful.hnsw");
  return (std::filesystem::path(options_.graph_cache_folder) / name).string();
}

std::vector<LabeledVector> ReferenceCatalog::VectorsOf(absl::Span<const Labeled> members) {
  std::vector<LabeledVector> vectors;
  vectors.reserve(members.size());
  for (const Labeled& member : members) vectors.push_back({member.label, member.record->embedding});
  return vectors;
}

ReferenceCatalog::IndexPtr ReferenceCatalog::LoadOrBuildIndex(absl::string_view collection, ViewKind kind,
                                                              absl::Span<const Labeled> members, int64_t generation) {
  if (IndexPtr on_device = builder_.BuildOnDevice(VectorsOf(members))) return on_device;
  if (!builder_.Saved(static_cast<int64_t>(members.size()))) return BuildIndex(members);
  if (!options_.graph_cache_folder.empty()) {
    absl::StatusOr<IndexPtr> loaded = builder_.Load(GraphPath(collection, kind), generation, VectorsOf(members));
    if (loaded.ok()) {
      ++startup_.graphs_loaded;
      return *std::move(loaded);
    }
    if (!absl::IsNotFound(loaded.status())) {
      startup_.refused_files.push_back(std::string(loaded.status().message()));
    }
  }
  ++startup_.graphs_built;
  return BuildIndex(members);
}

absl::StatusOr<const ReferenceCatalog::Collection*> ReferenceCatalog::FindSearchable(absl::string_view name) const {
  const auto found = collections_.find(name);
  if (found == collections_.end() || found->second.references == 0) {
    return absl::NotFoundError(absl::StrCat("collection \"", name, "\" does not exist"));
  }
  const Collection& collection = found->second;
  if (!collection.usable.empty()) return &collection;
  const auto main_reason = std::max_element(collection.unusable.begin(), collection.unusable.end(),
                                            [](const auto& a, const auto& b) { return a.second < b.second; });
  return absl::FailedPreconditionError(absl::StrCat("collection \"", name, "\" has ", collection.references,
                                                    " references, none usable: ", main_reason->first,
                                                    "; import them again"));
}

// NeighborIndex::SearchMany among what searches may return.
absl::StatusOr<std::vector<std::vector<LabeledDistance>>> ReferenceCatalog::SearchVisible(
    const Collection& collection, ViewKind kind, absl::Span<const float> queries, int k, std::optional<int> state_layer,
    const LabelFilter* filter) const {
  if (state_layer) {
    C3PO_ASSIGN_OR_RETURN(const States* states, StatesOf(collection, *state_layer));
    return states->indexes[kind]->SearchMany(queries, k, filter);
  }
  const View& view = collection.views[kind];
  if (filter != nullptr) return view.index->SearchMany(queries, k, filter);  // It admits nothing that is hidden.
  const int wanted = k > INT_MAX - view.hidden ? INT_MAX : k + view.hidden;
  C3PO_ASSIGN_OR_RETURN(std::vector<std::vector<LabeledDistance>> all, view.index->SearchMany(queries, wanted));
  const auto hidden = [&](const LabeledDistance& each) { return !collection.usable.contains(each.label); };
  for (std::vector<LabeledDistance>& found : all) {
    found.erase(std::remove_if(found.begin(), found.end(), hidden), found.end());
    if (found.size() > static_cast<size_t>(k)) found.resize(static_cast<size_t>(k));
  }
  return all;
}

std::vector<Neighbor> ReferenceCatalog::Named(const Collection& collection, absl::Span<const LabeledDistance> found) {
  std::vector<Neighbor> neighbors;
  neighbors.reserve(found.size());
  for (const LabeledDistance& each : found) neighbors.push_back({collection.usable.at(each.label)->id, each.distance});
  return neighbors;
}

absl::StatusOr<std::vector<Neighbor>> ReferenceCatalog::Search(absl::string_view collection,
                                                               absl::Span<const float> embedding, int k,
                                                               bool successful_only, std::optional<int> state_layer,
                                                               const MetadataFilter* filter) const {
  ReaderLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Collection* searched, FindSearchable(collection));
  C3PO_RETURN_IF_ERROR(CheckNeighborCount("k", k));
  C3PO_RETURN_IF_ERROR(CheckQuery(embedding, state_layer));
  const ViewKind kind = successful_only ? kSuccessful : kAll;
  const std::shared_ptr<const LabelFilter> matching = Matching(*searched, kind, filter);
  C3PO_ASSIGN_OR_RETURN(const std::vector<std::vector<LabeledDistance>> found,
                        SearchVisible(*searched, kind, embedding, k, state_layer, matching.get()));
  return Named(*searched, found.front());
}

absl::Status ReferenceCatalog::CheckQuery(absl::Span<const float> query, std::optional<int> state_layer) const {
  if (!state_layer) return CheckVector("embedding", query, options_.embedding_dimension);
  C3PO_RETURN_IF_ERROR(CheckStateLayer(*state_layer));
  return CheckVector("state", query, options_.hidden_size);
}

absl::StatusOr<std::vector<Neighbor>> ReferenceCatalog::SearchWithin(absl::string_view collection,
                                                                     absl::Span<const float> embedding, float epsilon,
                                                                     int k_max, bool successful_only,
                                                                     std::optional<int> state_layer,
                                                                     const MetadataFilter* filter) const {
  if (!(epsilon >= 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("epsilon: ", NumberText(epsilon), ", must be a distance of at least 0"));
  }
  C3PO_ASSIGN_OR_RETURN(std::vector<Neighbor> found,
                        Search(collection, embedding, k_max, successful_only, state_layer, filter));
  while (!found.empty() && found.back().distance > epsilon) found.pop_back();
  return found;
}

absl::StatusOr<std::vector<Neighbor>> ReferenceCatalog::SearchPathways(absl::string_view collection,
                                                                       absl::Span<const float> rows,
                                                                       absl::Span<const int> layers, int k,
                                                                       bool successful_only,
                                                                       const MetadataFilter* filter) const {
  C3PO_RETURN_IF_ERROR(CheckNeighborCount("k", k));
  C3PO_RETURN_IF_ERROR(CheckLayers(layers, options_.moe_layers));
  const size_t experts = static_cast<size_t>(options_.experts);
  C3PO_RETURN_IF_ERROR(CheckVector("rows", rows, static_cast<int>(layers.size() * experts)));
  ReaderLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Collection* searched, FindSearchable(collection));
  const ViewKind kind = successful_only ? kSuccessful : kAll;
  const std::shared_ptr<const LabelFilter> matching = Matching(*searched, kind, filter);
  if (searched->pathways != nullptr) {
    const auto found = searched->pathways->Search(rows, layers, k, kind, matching.get());
    if (found.ok()) return Named(*searched, *found);
  }
  // The records' own pathways are scanned: a matrix of them all would cost as much memory again and save one pointer
  // each.
  NearestList nearest(std::min(static_cast<size_t>(k), searched->usable.size()));
  const auto compare = [&](int64_t label, const ReferenceRecord& record) {
    float squared = 0;
    for (size_t c = 0; c < layers.size(); ++c) {
      squared += SquaredDistance(rows.data() + c * experts, record.pathway.Row(layers[c]).data(), experts);
    }
    nearest.Offer(squared, label);
  };
  if (matching != nullptr) {
    for (const int64_t label : matching->labels()) compare(label, *searched->usable.at(label));
  } else {
    for (const auto& [label, record] : searched->usable) {
      if (IsIn(kind, *record)) compare(label, *record);
    }
  }
  return Named(*searched, nearest.Take());
}

absl::StatusOr<std::optional<double>> ReferenceCatalog::OwnDistanceQuantile(absl::string_view collection,
                                                                            bool successful_only, double quantile,
                                                                            std::optional<int> state_layer) const {
  if (!(quantile > 0 && quantile <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("quantile: ", NumberText(quantile), ", must be in (0, 1]"));
  }
  ReaderLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Collection* searched, FindSearchable(collection));
  const ViewKind kind = successful_only ? kSuccessful : kAll;
  if (!state_layer) return searched->views[kind].own.Quantile(quantile);
  C3PO_ASSIGN_OR_RETURN(const States* states, StatesOf(*searched, *state_layer));
  return OwnDistances::QuantileOf(states->own[kind], quantile);
}

std::optional<std::string> ReferenceCatalog::CollectionOf(absl::string_view id) const {
  ReaderLock lock(mutex_);
  const auto found = entries_.find(id);
  return found == entries_.end() ? std::nullopt : std::optional<std::string>(found->second.collection);
}

absl::StatusOr<std::vector<ReferenceRecord>> ReferenceCatalog::WithPrompt(absl::string_view collection,
                                                                          absl::string_view prompt) const {
  std::vector<std::string> ids;
  {
    ReaderLock lock(mutex_);
    ids = prompts_.Find(PromptIndex::KeyOf(collection, prompt));
  }
  if (ids.empty()) return std::vector<ReferenceRecord>();
  C3PO_RETURN_IF_ERROR(feed_->CheckReachable());
  C3PO_ASSIGN_OR_RETURN(std::vector<ReferenceRecord> records, store_->GetMany(ids));
  const auto other = [&](const ReferenceRecord& record) {
    return record.collection != collection || record.sample.prompt != prompt;
  };
  records.erase(std::remove_if(records.begin(), records.end(), other), records.end());
  return records;
}

std::vector<std::shared_ptr<const ReferenceRecord>> ReferenceCatalog::Some(absl::string_view collection,
                                                                           size_t count) const {
  std::vector<RecordPtr> some;
  ReaderLock lock(mutex_);
  const auto found = collections_.find(collection);
  if (found == collections_.end()) return some;
  for (const auto& [label, record] : found->second.usable) {
    if (some.size() >= count) break;
    some.push_back(record);
  }
  return some;
}

absl::StatusOr<std::shared_ptr<const ReferenceRecord>> ReferenceCatalog::GetRecord(absl::string_view id) const {
  ReaderLock lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return absl::NotFoundError(absl::StrCat("reference \"", id, "\" does not exist"));
  if (found->second.record != nullptr) return found->second.record;
  return absl::FailedPreconditionError(
      absl::StrCat("reference \"", id, "\" is not usable: ", found->second.why_unusable, "; import it again"));
}

absl::StatusOr<std::shared_ptr<const Pathway>> ReferenceCatalog::GetPathway(absl::string_view id) const {
  C3PO_ASSIGN_OR_RETURN(const RecordPtr record, GetRecord(id));
  return std::shared_ptr<const Pathway>(record, &record->pathway);
}

absl::Status ReferenceCatalog::SaveGraphs() const {
  if (options_.graph_cache_folder.empty()) return absl::OkStatus();
  feed_->CatchUp().IgnoreError();  // Files of the store's own generation are the ones that Open takes.
  MutexLock changing(change_mutex_);
  std::error_code error;
  std::filesystem::create_directories(options_.graph_cache_folder, error);
  if (error) {
    return absl::FailedPreconditionError(
        absl::StrCat(options_.graph_cache_folder, ": cannot create the folder: ", error.message()));
  }
  std::vector<std::pair<std::string, IndexPtr>> files;
  {
    ReaderLock lock(mutex_);
    for (const auto& [name, collection] : collections_) {
      for (ViewKind kind : kViewKinds) files.emplace_back(GraphPath(name, kind), collection.views[kind].index);
    }
  }
  for (const auto& [path, index] : files) C3PO_RETURN_IF_ERROR(index->Save(path, generation()));
  return absl::OkStatus();
}

int64_t ReferenceCatalog::generation() const {
  ReaderLock lock(mutex_);
  return generation_;
}

std::vector<CatalogCollection> ReferenceCatalog::Collections() const {
  std::vector<CatalogCollection> collections;
  ReaderLock lock(mutex_);
  for (const auto& [name, collection] : collections_) {
    if (collection.references == 0) continue;
    collections.push_back(
        {name, collection.references, collection.views[kAll].references, collection.views[kSuccessful].references});
  }
  return collections;
}

}  // namespace c3po
