#ifndef C3PO_INDEX_SEARCH_REFERENCE_CATALOG_H_
#define C3PO_INDEX_SEARCH_REFERENCE_CATALOG_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/base/mutex.h"
#include "index/search/answer_groups.h"
#include "index/search/cuda/device_pathways.h"
#include "index/search/exact_index.h"
#include "index/search/hnsw_index.h"
#include "index/search/index_builder.h"
#include "index/search/metadata_index.h"
#include "index/search/neighbor_index.h"
#include "index/search/own_distances.h"
#include "index/search/prompt_index.h"
#include "index/search/recall.h"
#include "index/store/reference_store.h"
#include "index/store/store_feed.h"
#include "index/types/metadata_filter.h"
#include "index/types/neighbor.h"
#include "index/types/pathway.h"
#include "index/types/reference_record.h"

namespace c3po {

struct CatalogOptions {
  // What this server runs. Only references made with the same are usable.
  std::string model_digest;
  std::string embedder_digest;
  int embedding_dimension = 0;
  int moe_layers = 0;
  int experts = 0;
  int hidden_size = 0;  // of the model's hidden states; 0: the catalog keeps none

  int exact_references_max = 2000;  // Of a view; larger ones are searched through a graph (IndexBuilder).
  HnswOptions hnsw;
  int64_t device_references_max = 1000000;  // Of a view on the device; larger ones are searched through a graph there.
  // Whose memory indexes and pathways lie in, as far as it goes; null: the host's alone. Outlives the catalog.
  IndexDevice* index_device = nullptr;
  std::string graph_cache_folder;  // Where SaveGraphs writes and Open looks; created if absent. Empty: none.
};

// How Open came by the graphs of views above exact_references_max.
struct CatalogStartup {
  int graphs_loaded = 0;
  int graphs_built = 0;
  std::vector<std::string>
      refused_files;  // One line each: why a file of the cache was not used. Absent files have none.
};

struct CatalogCollection {
  std::string name;
  int64_t references = 0;             // In the store.
  int64_t usable = 0;                 // Of them, found by searches over all labeled references.
  int64_t usable_and_successful = 0;  // Of them, found by searches over successful ones.
};

// What the server searches: the usable references of every collection of a store, held in memory, in two views per
// collection: the successful ones (the paper's rule) and all. A reference is usable when its model_digest,
// embedder_digest and sizes are the server's; the others are only counted.
//
// Changes come by one way, the store's feed (StoreFeed), whoever made them: Insert and Erase commit to the store, and
// catch up; CatchUp alone shows what others have committed to a shared store. A search sees one state of the store:
// each batch whole or not at all, and all that was caught up with at once together. A change that returned OK is seen
// by every search begun later. Updates are taken in one after the other; searches go on meanwhile.
//
// Memory per usable reference: its texts, 4 * (dimension + moe_layers * experts) bytes for the record, 4 * dimension
// for each of the one or two views it is in (in a graph more: HnswIndex), what MetadataIndex takes, and about 700 for
// the maps: some 9 KB for 384 dimensions and 30 layers of 32 experts. A view's own distances take 40 KB at most.
//
// Thread-safe. InvalidArgument names the argument: k < 1, an embedding of another dimension, a number that is not
// finite.
class ReferenceCatalog : private StoreListener {
 public:
  // Reads the whole store; returns when every view can be searched. A graph comes from the cache folder when the file
  // is sound, of the store's generation, and holds exactly the view's embeddings; else it is built (about a millisecond
  // per reference). InvalidArgument: options out of range. `feed` must outlive the catalog.
  static absl::StatusOr<std::unique_ptr<ReferenceCatalog>> Open(StoreFeed* feed, const CatalogOptions& options);
  // The same with a feed of its own, where nobody else follows the store's changes.
  static absl::StatusOr<std::unique_ptr<ReferenceCatalog>> Open(ReferenceStore* store, const CatalogOptions& options);
  ~ReferenceCatalog() override;

  ReferenceCatalog(const ReferenceCatalog&) = delete;
  ReferenceCatalog& operator=(const ReferenceCatalog&) = delete;

  // Searches compare embeddings, or with `state_layer` hidden states of the model: those entering that MoE layer, or
  // after the last one (moe_layers), as far as the collection has them (WithoutState). `embedding` is such a state
  // then, of unit length, the search is exact, and FailedPrecondition: the layer's states are not there.
  //
  // With a `filter`, which has passed ValidateFilter, a search finds what it would find if the collection held no other
  // references than those that match; null, or without conditions: all. It is seen with the batch that it belongs to:
  // a search never finds a reference by metadata that another batch gave it. Under a filter a search is
  //   exact where it is without (views of at most exact_references_max, states, pathways, scans on the device),
  //   exact where the matching references are few: these are compared one by one, unless the graph has to look at fewer
  //   (HnswIndex::AsksGraph: of a view of 100,000, with the default options, from some 10,000 matching ones on),
  //   else of the graph's recall: as many more candidates are asked for as do not match, and where fewer than k of
  //   them do, twice as many again, at last all matching references, exactly.
  // Whom nothing matches finds nothing, without an error.

  // The k nearest references of a collection by embedding, nearest first, ties in an order that ids alone decide (their
  // own, where they are made of samples); fewer when there are fewer, none when none is successful and successful_only.
  // Exact up to exact_references_max, approximate above.
  // NotFound "collection X does not exist". FailedPrecondition: it has references and none is usable; the message says
  // what they were made with.
  absl::StatusOr<std::vector<Neighbor>> Search(absl::string_view collection, absl::Span<const float> embedding, int k,
                                               bool successful_only, std::optional<int> state_layer = std::nullopt,
                                               const MetadataFilter* filter = nullptr) const;

  // Those of Search with k_max at distance <= epsilon.
  absl::StatusOr<std::vector<Neighbor>> SearchWithin(absl::string_view collection, absl::Span<const float> embedding,
                                                     float epsilon, int k_max, bool successful_only,
                                                     std::optional<int> state_layer = std::nullopt,
                                                     const MetadataFilter* filter = nullptr) const;

  // Of the references whose choices are, as a set of texts, those of the nearest one: the k nearest with each answer,
  // by ascending answer; of more than k answers the k that are nearest. References without choices are one such group.
  // `excluded` ids are none of them, nor the nearest one. Exact where Search is, and always where the group has more
  // than kAnswersSearchedMax answers: its embeddings are all compared then. Errors as Search; empty: there is no
  // reference to be near.
  static constexpr size_t kAnswersSearchedMax = 128;
  absl::StatusOr<std::vector<AnswerNeighbors>> SearchByAnswer(absl::string_view collection,
                                                              absl::Span<const float> embedding, int k,
                                                              bool successful_only,
                                                              absl::Span<const std::string> excluded,
                                                              std::optional<int> state_layer = std::nullopt,
                                                              const MetadataFilter* filter = nullptr) const;

  // The k nearest by pathway: Euclidean distance over the chosen rows, exact,
  //   sqrt(sum_c sum_e (rows[c, e] - pathway_i[layers[c], e])^2).
  // rows: row-major [layers.size(), experts]. layers: different MoE layers, each in [0, moe_layers). Reads every
  // pathway of the view: 4 * layers * experts bytes each, on the device where they lie there. Errors as Search.
  absl::StatusOr<std::vector<Neighbor>> SearchPathways(absl::string_view collection, absl::Span<const float> rows,
                                                       absl::Span<const int> layers, int k, bool successful_only,
                                                       const MetadataFilter* filter = nullptr) const;

  // How far the collection's own references are from each other: the least distance that at least the share `quantile`,
  // in (0, 1], of a view's members do not exceed with the distance to their nearest other member. Others with the same
  // embedding (OwnDistances::kSameEmbedding) do not count. Exact for views of at most OwnDistances::kSampleMax members;
  // of larger ones a sample of that many is taken. The distances of a change are in place when the change returns.
  // Nothing: no two members differ. Errors as Search.
  absl::StatusOr<std::optional<double>> OwnDistanceQuantile(absl::string_view collection, bool successful_only,
                                                            double quantile,
                                                            std::optional<int> state_layer = std::nullopt) const;

  // Hidden states at the references' last prompt tokens. Whoever runs the model makes those that are missing:
  //   until HasAllStates: WithoutState ▶ AddStates; once none is missing, RefreshStateDistances
  // They are kept in the store with their model, and go with their reference. Of a collection at most kStateLayersMax
  // layers; those that were first asked for the longest ago give way. Memory: 4 * hidden_size bytes for each of the one
  // or two views of a reference, and as much again in the store.
  static constexpr size_t kStateLayersMax = 4;
  struct ReferenceState {
    std::shared_ptr<const ReferenceRecord> record;  // as WithoutState gave it
    std::vector<float> state;                       // [hidden_size], unit length; empty: it cannot be computed
  };
  // Whether every usable reference has its state of the layer or none that can be computed, and their distances are
  // known; also of a collection without usable references.
  bool HasAllStates(absl::string_view collection, int layer) const;
  // Up to `count` usable references whose states are missing. The first time for a layer it reads what the store has.
  // Errors as Search; the store's.
  absl::StatusOr<std::vector<std::shared_ptr<const ReferenceRecord>>> WithoutState(absl::string_view collection,
                                                                                   int layer, size_t count);
  // Adds them to the store, then to what searches see. References that have gone or changed meanwhile are passed over.
  absl::Status AddStates(absl::string_view collection, int layer, absl::Span<const ReferenceState> states);
  // Computes what OwnDistanceQuantile says of the layer; until then it is as it was before the last change.
  absl::Status RefreshStateDistances(absl::string_view collection, int layer);
  int moe_layers() const { return options_.moe_layers; }

  // Whether the store holds it, usable or not.
  bool Holds(absl::string_view id) const { return CollectionOf(id).has_value(); }
  // The collection of a reference that the store holds, usable or not.
  std::optional<std::string> CollectionOf(absl::string_view id) const;
  // The references of a collection with this very prompt, usable or not, in the order in which they came. Compares the
  // store's texts where a hash says that there may be some.
  absl::StatusOr<std::vector<ReferenceRecord>> WithPrompt(absl::string_view collection, absl::string_view prompt) const;

  // Up to `count` usable references of a collection, some of them or all, in no particular order; none: there are none.
  std::vector<std::shared_ptr<const ReferenceRecord>> Some(absl::string_view collection, size_t count) const;

  // A usable reference. It stays as it is for as long as the caller holds it, also when it is erased meanwhile.
  // NotFound: no such id. FailedPrecondition: not usable.
  absl::StatusOr<std::shared_ptr<const ReferenceRecord>> GetRecord(absl::string_view id) const;
  // Its pathway, of all MoE layers; errors and lifetime as GetRecord.
  absl::StatusOr<std::shared_ptr<const Pathway>> GetPathway(absl::string_view id) const;

  // Takes in all that was committed to the store before the call (StoreFeed::CatchUp).
  absl::Status CatchUp() { return feed_->CatchUp(); }

  // Adds records to the store as one batch (see ReferenceStore::Add) and catches up. On an error neither store nor
  // views have changed, but where it says that the change is stored (StoreFeed::CatchUpAfterChange).
  absl::StatusOr<std::vector<AddOutcome>> Insert(absl::Span<const ReferenceRecord> records);

  // Deletes from the store, and catches up; returns how many are gone. Errors as Insert.
  absl::StatusOr<int64_t> Erase(absl::Span<const std::string> ids);
  absl::StatusOr<int64_t> EraseCollection(absl::string_view collection);

  // Writes the graph of every view that has one into graph_cache_folder, for the next Open; does nothing without a
  // folder. Changes wait meanwhile, searches do not. A failure harms nothing: the graphs will be built.
  absl::Status SaveGraphs() const;

  // Recall of the graphs: of up to `queries` members of each view that a graph searches, spread over the view, the
  // share of their k exact nearest other members that Search finds, in [0, 1] (recall.h). 1 where every view is
  // searched exactly. k, queries >= 1. Compares every embedding of such a view with `queries` others; changes and
  // searches do not wait for that, only for the view's list of members to be copied and the graph to be searched.
  double MeasureRecall(int k, int queries) const;

  // The store's generation that searches reflect.
  int64_t generation() const;
  // By ascending name.
  std::vector<CatalogCollection> Collections() const;
  // Of the usable references and their indexes (NeighborIndex::MemoryBytes), by the formula above: an estimate.
  int64_t MemoryBytes() const;
  const CatalogStartup& startup() const { return startup_; }

 private:
  enum ViewKind { kAll = 0, kSuccessful = 1 };
  static constexpr std::array<ViewKind, 2> kViewKinds = {kAll, kSuccessful};
  using RecordPtr = std::shared_ptr<const ReferenceRecord>;
  using IndexPtr = std::shared_ptr<NeighborIndex>;

  struct View {
    IndexPtr index;
    // How many labels `index` may hold beyond the collection's: those of a change under way. Searches ask for so many
    // more.
    int hidden = 0;
    int64_t references = 0;
    OwnDistances own;
  };

  // Of one layer. Not Collection's own indexes: nothing is hidden in these, they change with `usable`.
  struct States {
    std::array<std::unique_ptr<ExactIndex>, 2> indexes;  // By label, of each view.
    absl::flat_hash_set<int64_t> without;                // Those whose state cannot be computed.
    std::array<std::vector<float>, 2> own;               // Distances of a sample of each view to their nearest others.
    bool own_is_current = false;
  };

  struct Collection {
    std::array<View, 2> views;
    absl::flat_hash_map<int64_t, RecordPtr> usable;  // By label; what searches may return.
    std::shared_ptr<DevicePathways> pathways;        // Those of `usable`, on the device; null: not there.
    AnswerGroups answers;                            // Of `usable`.
    MetadataIndex metadata;                          // Of `usable`.
    std::map<int, States> states;                    // By layer; those that were asked for.
    std::map<std::string, int64_t> unusable;         // Why, and how many.
    int64_t references = 0;
  };

  struct Entry {
    std::string collection;
    RecordPtr record;   // Null: not usable.
    int64_t label = 0;  // Of a usable one.
    std::string why_unusable;
    uint64_t prompt_key = 0;
  };

  // A record on its way into the catalog.
  struct Candidate {
    RecordPtr record;
    std::string why_unusable;  // Empty: usable.
    uint64_t prompt_key = 0;   // Of PromptIndex; the record of one that is not usable has no prompt any more.
  };

  // A usable record and the label by which the indexes of its collection know it.
  struct Labeled {
    RecordPtr record;
    int64_t label = 0;
  };
  using LabeledByCollection = std::map<std::string, std::vector<Labeled>>;
  using IndexesByCollection = std::map<std::string, std::array<IndexPtr, 2>>;  // Null: as it was.
  using PathwaysByCollection = std::map<std::string, std::shared_ptr<DevicePathways>>;

  ReferenceCatalog(StoreFeed* feed, const CatalogOptions& options)
      : feed_(feed), store_(&feed->store()), options_(options), builder_(OptionsOfIndexes(options)) {}

  static uint32_t ViewsOf(const ReferenceRecord& record) {
    return 1u << kAll | (record.successful ? 1u : 0u) << kSuccessful;
  }
  static bool IsIn(ViewKind kind, const ReferenceRecord& record) { return kind == kAll || record.successful; }
  static IndexOptions OptionsOfIndexes(const CatalogOptions& options) {
    IndexOptions of_indexes;
    of_indexes.dimension = options.embedding_dimension;
    of_indexes.exact_max = options.exact_references_max;
    of_indexes.hnsw = options.hnsw;
    of_indexes.device = options.index_device;
    of_indexes.device_exact_max = options.device_references_max;
    return of_indexes;
  }
  static std::vector<Neighbor> Named(const Collection& collection, absl::Span<const LabeledDistance> found);
  static std::vector<Labeled> MembersOf(const Collection& collection, ViewKind kind);
  // The members with the `count` smallest labels, or all of fewer, by ascending label.
  static std::vector<Labeled> SmallestLabels(const Collection& collection, ViewKind kind, size_t count);
  std::string WhyUnusable(const ReferenceRecord& record) const;
  std::string GraphPath(absl::string_view collection, ViewKind kind) const;
  static std::vector<LabeledVector> VectorsOf(absl::Span<const Labeled> members);
  IndexPtr BuildIndex(absl::Span<const Labeled> members) const { return builder_.Build(VectorsOf(members)); }
  IndexPtr LoadOrBuildIndex(absl::string_view collection, ViewKind kind, absl::Span<const Labeled> members,
                            int64_t generation);

  absl::Status OnUpdate(const StoreUpdate& update) override;
  absl::Status ReadAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_);
  Candidate CandidateOf(RecordPtr record) const;
  bool IsHeld(const Candidate& candidate) const;
  void Take(absl::Span<const Candidate> candidates, absl::Span<const std::string> erased, int64_t generation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_);

  absl::StatusOr<const Collection*> FindSearchable(absl::string_view collection) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::vector<std::vector<LabeledDistance>>> SearchVisible(const Collection& collection, ViewKind kind,
                                                                          absl::Span<const float> queries, int k,
                                                                          std::optional<int> state_layer = {},
                                                                          const LabelFilter* filter = nullptr) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // The members of a view that match; null: all, as there is no filter.
  static std::shared_ptr<const LabelFilter> Matching(const Collection& collection, ViewKind kind,
                                                     const MetadataFilter* filter) {
    const bool all = filter == nullptr || filter->empty();
    return all ? nullptr : collection.metadata.Find(*filter, kind == kSuccessful);
  }
  using AnswersOfLabels = absl::flat_hash_map<int64_t, absl::string_view>;
  AnswersOfLabels LabelsOf(absl::string_view collection, absl::Span<const std::string> ids) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::vector<AnswerNeighbors>> NearestByAnswer(const Collection& collection, ViewKind kind,
                                                               int64_t nearest, absl::Span<const float> query, int k,
                                                               const AnswersOfLabels& left_out,
                                                               std::optional<int> state_layer,
                                                               const LabelFilter* filter) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  RecallCount RecallOf(absl::string_view collection, ViewKind kind, int k, int queries) const;

  // The steps of an update; each is explained at its definition.
  LabeledByCollection AssignLabels(absl::Span<const Candidate> candidates) const;
  static std::vector<Labeled> Entering(ViewKind kind, absl::Span<const Labeled> arrivals);
  bool BuildsAnew(const View& view, size_t arrivals) const;
  void ReserveHidden(const LabeledByCollection& arrivals);
  IndexesByCollection FillIndexes(const LabeledByCollection& arrivals);
  IndexPtr FillIndex(const std::string& collection, ViewKind kind, absl::Span<const Labeled> arrivals) const;
  IndexesByCollection LoadOrBuildIndexes(const LabeledByCollection& arrivals, int64_t generation);
  void Publish(absl::Span<const Candidate> candidates, absl::Span<const std::string> erased,
               const LabeledByCollection& arrivals, const IndexesByCollection& replacements, int64_t generation);
  void Enter(absl::Span<const Candidate> candidates, const LabeledByCollection& arrivals)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<std::string> DropEmptyCollections(LabeledByCollection& departed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RemoveGraphFiles(absl::Span<const std::string> collections) const;
  void Unpublish(const std::string& id, LabeledByCollection& departed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RemoveFromIndexes(const LabeledByCollection& departed);
  PathwaysByCollection PlacePathways(const LabeledByCollection& arrivals) const;
  void ShowPathways(const PathwaysByCollection& placed, const LabeledByCollection& arrivals)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HidePathways(const LabeledByCollection& departed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RefreshDistances(const LabeledByCollection& arrivals, const LabeledByCollection& departed);
  OwnDistances DistancesAfter(const std::string& name, ViewKind kind,
                              absl::Span<const OwnDistances::Member> added) const;
  std::vector<OwnDistances::Nearest> NearestOthers(const Collection& collection, ViewKind kind,
                                                   absl::Span<const OwnDistances::Member> members,
                                                   std::optional<int> state_layer = {}) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  absl::Status CheckStateLayer(int layer) const;
  absl::StatusOr<const States*> StatesOf(const Collection& collection, int layer) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  absl::Status CheckQuery(absl::Span<const float> query, std::optional<int> state_layer) const;
  absl::Status LoadStates(const std::string& name, int layer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_);
  absl::Status MakeRoomForStates(const std::string& name, int layer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_);
  absl::StatusOr<std::vector<int>> StoredLayers(const std::string& name) const;
  void KeepStoredLayers(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_);
  void TakeStates(absl::Span<const Artifact> artifacts) ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_);
  absl::Status TakeState(const Entry& entry, int layer, absl::string_view value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void DropStates(Collection& collection, const Entry& entry);
  Collection& CollectionNamed(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::unique_ptr<StoreFeed> own_feed_;  // Null: the feed is somebody else's.
  StoreFeed* const feed_;
  ReferenceStore* const store_;  // The feed's; changes of references and states only through the feed.
  const CatalogOptions options_;
  const IndexBuilder builder_;
  CatalogStartup startup_;

  // Taken before mutex_. Whoever holds it is the only one to change what mutex_ guards.
  mutable Mutex change_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  mutable SharedMutex mutex_;
  std::map<std::string, Collection, std::less<>> collections_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  PromptIndex prompts_ ABSL_GUARDED_BY(mutex_);
  int64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_REFERENCE_CATALOG_H_
