// The one file that sees hnswlib (0.6.2). What it does not promise, and how that is met here:
// - Search and addPoint may not overlap: a shared mutex.
// - It throws: every call is in Guarded().
// - addPoint of a label that it knows rewrites the old node in place, which can leave parts of the graph unreachable:
//   its labels are our node numbers, never used twice, and the map from our callers' labels is kept here.
// - Once elements are marked deleted, addPoint may find no live candidate and read past an empty list: nothing is ever
//   marked. Tombstones are a flag here; a search asks the graph for more candidates and drops them.
// - saveIndex and loadIndex check nothing: neither is used. The graph is copied out of and into its public members.
// - Its SSE paths prefetch by reading one link past the end of a node's list, a heap overrun: they are switched off.
//   Distances are ours (SquaredDistance, vectorized as well).

#include "index/search/hnsw_index.h"

#define NO_MANUAL_VECTORIZATION
#include <hnswlib/hnswlib.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/mutex.h"
#include "index/base/status_macros.h"
#include "index/search/distance.h"
#include "index/search/hnsw_file.h"
#include "index/search/nearest_list.h"

namespace c3po {
namespace {

using Graph = hnswlib::HierarchicalNSW<float>;

class SquaredDistanceSpace : public hnswlib::SpaceInterface<float> {
 public:
  explicit SquaredDistanceSpace(size_t dimension) : dimension_(dimension) {}
  size_t get_data_size() override { return dimension_ * sizeof(float); }
  hnswlib::DISTFUNC<float> get_dist_func() override {
    return [](const void* a, const void* b, const void* dimension) {
      return SquaredDistance(static_cast<const float*>(a), static_cast<const float*>(b),
                             *static_cast<const size_t*>(dimension));
    };
  }
  void* get_dist_func_param() override { return &dimension_; }

 private:
  size_t dimension_;
};

constexpr size_t kFirstCapacity = 1024;   // Nodes.
constexpr int64_t kTombstonesMin = 1024;  // Fewer are not worth a new graph.

// Runs `call` under the locks that its caller holds: clang checks the body of `call`, and cannot see through to them
// here.
template <typename Call>
absl::Status Guarded(absl::string_view action, Call call) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  try {
    call();
    return absl::OkStatus();
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("graph index: ", action, ": ", error.what()));
  }
}

absl::Status CheckRange(absl::string_view name, int value, int least, int most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", value, ", must be in [", least, ", ", most, "]"));
}

absl::Status CheckOptions(int dimension, const HnswOptions& options) {
  C3PO_RETURN_IF_ERROR(CheckRange("dimension", dimension, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("hnsw.m", options.m, 2, 256));
  C3PO_RETURN_IF_ERROR(CheckRange("hnsw.ef_construction", options.ef_construction, options.m, 10000));
  return CheckRange("hnsw.ef_search", options.ef_search, 1, 10000);
}

}  // namespace

struct HnswIndex::Impl {
  Impl(int index_dimension, const HnswOptions& index_options)
      : dimension(index_dimension), options(index_options), space(static_cast<size_t>(index_dimension)) {}

  absl::Status MakeGraph(size_t capacity) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  absl::Status CheckUsable() const ABSL_SHARED_LOCKS_REQUIRED(mutex) {
    return broken ? absl::InternalError("graph index: broken by an earlier error; build it anew") : absl::OkStatus();
  }
  const float* VectorOf(size_t node) const ABSL_SHARED_LOCKS_REQUIRED(mutex) {
    return reinterpret_cast<const float*>(graph->getDataByInternalId(static_cast<hnswlib::tableint>(node)));
  }
  // Which nodes a search may find: no tombstones, and what its filter admits. A filter is asked about candidates, one
  // by one, so that a wide one costs a search of the graph little more than none.
  struct Live {
    const LabelFilter* filter = nullptr;
    size_t count = 0;  // At most so many; without a filter exactly.
  };
  Live LiveNodes(const LabelFilter* filter) const ABSL_SHARED_LOCKS_REQUIRED(mutex);
  bool IsLive(size_t node, const Live& live) const ABSL_SHARED_LOCKS_REQUIRED(mutex) {
    return removed[node] == 0 && (live.filter == nullptr || live.filter->Admits(label_of_node[node]));
  }
  // Offers the live ones among the `candidates` nearest nodes that the graph finds; returns how many there were.
  size_t OfferLive(const float* query, size_t candidates, const Live& live, NearestList& nearest) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex);
  // The `wanted` nearest to one query as the graph finds them, into `found`. False: comparing all live nodes is less
  // work, and `found` is unchanged. 1 <= wanted <= live nodes.
  absl::StatusOr<bool> SearchGraph(const float* query, size_t wanted, const Live& live,
                                   std::vector<LabeledDistance>& found) const ABSL_SHARED_LOCKS_REQUIRED(mutex);
  // The same by comparing all live nodes with the queries of these numbers.
  void CompareAll(absl::Span<const float> queries, absl::Span<const size_t> numbers, size_t wanted, const Live& live,
                  std::vector<std::vector<LabeledDistance>>& found) const ABSL_SHARED_LOCKS_REQUIRED(mutex);
  HnswLinks LinksOf(hnswlib::tableint node, int layer) const ABSL_SHARED_LOCKS_REQUIRED(mutex);
  // hnswlib writes the lists of the new node, and of the nodes that these name.
  HnswAddition TraceOf(hnswlib::tableint node) const ABSL_SHARED_LOCKS_REQUIRED(mutex);
  HnswGraph CopyOut(int64_t generation) const ABSL_SHARED_LOCKS_REQUIRED(mutex);
  // `image` has passed CheckHnswGraph.
  absl::Status CopyIn(const HnswGraph& image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  const int dimension;
  const HnswOptions options;
  SquaredDistanceSpace space;
  mutable SharedMutex mutex;
  std::unique_ptr<Graph> graph ABSL_GUARDED_BY(mutex);
  std::vector<int64_t> label_of_node ABSL_GUARDED_BY(mutex);                 // Tombstones included.
  std::vector<uint8_t> removed ABSL_GUARDED_BY(mutex);                       // 1 per tombstone.
  std::unordered_map<int64_t, size_t> node_of_label ABSL_GUARDED_BY(mutex);  // Live ones only.
  bool broken ABSL_GUARDED_BY(mutex) = false;
};

absl::Status HnswIndex::Impl::MakeGraph(size_t capacity) {
  return Guarded("cannot allocate", [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    graph = std::make_unique<Graph>(&space, capacity, static_cast<size_t>(options.m),
                                    static_cast<size_t>(options.ef_construction), options.seed);
    graph->setEf(static_cast<size_t>(options.ef_search));
  });
}

HnswIndex::Impl::Live HnswIndex::Impl::LiveNodes(const LabelFilter* filter) const {
  const size_t present = node_of_label.size();
  return {filter, filter == nullptr ? present : std::min(present, filter->labels().size())};
}

size_t HnswIndex::Impl::OfferLive(const float* query, size_t candidates, const Live& live, NearestList& nearest) const {
  size_t offered = 0;
  for (auto found = graph->searchKnn(query, candidates); !found.empty(); found.pop()) {
    const size_t node = found.top().second;
    if (!IsLive(node, live)) continue;
    nearest.Offer(SquaredDistance(query, VectorOf(node), static_cast<size_t>(dimension)), label_of_node[node]);
    ++offered;
  }
  return offered;
}

// Where tombstones crowd, the search widens. All candidates are offered, so that ties at the k-th place are resolved by
// label, not by the library.
absl::StatusOr<bool> HnswIndex::Impl::SearchGraph(const float* query, size_t wanted, const Live& live,
                                                  std::vector<LabeledDistance>& found) const {
  const size_t nodes = label_of_node.size();
  size_t candidates = HnswIndex::Candidates(wanted, options, nodes, live.count);
  for (; HnswIndex::AsksGraph(candidates, nodes, live.count, live.filter != nullptr); candidates *= 2) {
    NearestList nearest(wanted);
    size_t offered = 0;
    C3PO_RETURN_IF_ERROR(Guarded("cannot search", [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex) {
      offered = OfferLive(query, candidates, live, nearest);
    }));
    if (offered < wanted) continue;
    found = nearest.Take();
    return true;
  }
  return false;
}

// Where nearly every node is wanted, comparing them all is as fast, and does not depend on what links reach.
void HnswIndex::Impl::CompareAll(absl::Span<const float> queries, absl::Span<const size_t> numbers, size_t wanted,
                                 const Live& live, std::vector<std::vector<LabeledDistance>>& found) const {
  const auto size = static_cast<size_t>(dimension);
  std::vector<NearestList> nearest;
  nearest.reserve(numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i) nearest.emplace_back(wanted);
  const auto compare = [&](size_t node) ABSL_SHARED_LOCKS_REQUIRED(mutex) {
    for (size_t i = 0; i < numbers.size(); ++i) {
      nearest[i].Offer(SquaredDistance(&queries[numbers[i] * size], VectorOf(node), size), label_of_node[node]);
    }
  };
  if (numbers.empty()) return;
  if (live.filter == nullptr) {
    for (size_t node = 0; node < label_of_node.size(); ++node) {
      if (removed[node] == 0) compare(node);
    }
  } else {
    for (const int64_t label : live.filter->labels()) {
      const auto node = node_of_label.find(label);
      if (node != node_of_label.end()) compare(node->second);
    }
  }
  for (size_t i = 0; i < numbers.size(); ++i) found[numbers[i]] = nearest[i].Take();
}

HnswLinks HnswIndex::Impl::LinksOf(hnswlib::tableint node, int layer) const {
  const hnswlib::linklistsizeint* list = graph->get_linklist_at_level(node, layer);
  const uint32_t count = graph->getListCount(const_cast<hnswlib::linklistsizeint*>(list));
  return {node, layer, std::vector<uint32_t>(list + 1, list + 1 + count)};
}

HnswAddition HnswIndex::Impl::TraceOf(hnswlib::tableint node) const {
  HnswAddition addition;
  addition.node = node;
  addition.layer = graph->element_levels_[node];
  addition.top_layer = graph->maxlevel_;
  addition.entry_node = graph->enterpoint_node_;
  for (int layer = 0; layer <= addition.layer; ++layer) addition.changed.push_back(LinksOf(node, layer));
  for (int layer = 0; layer <= addition.layer; ++layer) {
    const std::vector<uint32_t> neighbors = addition.changed[static_cast<size_t>(layer)].links;
    for (const uint32_t neighbor : neighbors) addition.changed.push_back(LinksOf(neighbor, layer));
  }
  return addition;
}

HnswGraph HnswIndex::Impl::CopyOut(int64_t generation) const {
  HnswGraph image;
  const size_t nodes = label_of_node.size();
  image.dimension = dimension;
  image.m = options.m;
  image.ef_construction = options.ef_construction;
  image.generation = generation;
  image.top_layer = graph->maxlevel_;
  image.entry_node = nodes == 0 ? 0 : graph->enterpoint_node_;
  image.labels = label_of_node;
  image.removed = removed;
  image.vectors.reserve(nodes * static_cast<size_t>(dimension));
  for (hnswlib::tableint node = 0; node < nodes; ++node) {
    image.layers.push_back(graph->element_levels_[node]);
    image.vectors.insert(image.vectors.end(), VectorOf(node), VectorOf(node) + dimension);
    for (int layer = 0; layer <= graph->element_levels_[node]; ++layer) {
      const HnswLinks list = LinksOf(node, layer);
      image.links.push_back(static_cast<uint32_t>(list.links.size()));
      image.links.insert(image.links.end(), list.links.begin(), list.links.end());
    }
  }
  return image;
}

absl::Status HnswIndex::Impl::CopyIn(const HnswGraph& image) {
  const size_t nodes = image.labels.size();
  C3PO_RETURN_IF_ERROR(MakeGraph(std::max(kFirstCapacity, nodes)));
  const auto copy = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    size_t next = 0;
    for (hnswlib::tableint node = 0; node < nodes; ++node) {
      const int32_t top = image.layers[node];
      std::memset(graph->get_linklist0(node), 0, graph->size_data_per_element_);
      std::memcpy(graph->getDataByInternalId(node), &image.vectors[size_t{node} * dimension],
                  dimension * sizeof(float));
      graph->setExternalLabel(node, node);
      graph->label_lookup_[node] = node;
      if (top > 0) {
        char* lists = static_cast<char*>(std::calloc(1, graph->size_links_per_element_ * top + 1));
        if (lists == nullptr) throw std::bad_alloc();
        graph->linkLists_[node] = lists;
      }
      // The graph's destructor frees the lists of so many nodes, should something throw from here on.
      graph->element_levels_[node] = top;
      graph->cur_element_count = size_t{node} + 1;
      for (int32_t layer = 0; layer <= top; ++layer) {
        const uint32_t count = image.links[next++];
        hnswlib::linklistsizeint* list = graph->get_linklist_at_level(node, layer);
        graph->setListCount(list, static_cast<unsigned short>(count));
        std::copy_n(image.links.begin() + next, count, list + 1);
        next += count;
      }
      if (image.removed[node] == 0) node_of_label[image.labels[node]] = node;
    }
    graph->maxlevel_ = image.top_layer;
    if (nodes > 0) graph->enterpoint_node_ = image.entry_node;
    label_of_node = image.labels;
    removed = image.removed;
  };
  return Guarded("cannot load", copy);
}

HnswIndex::HnswIndex(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

HnswIndex::~HnswIndex() = default;

absl::StatusOr<std::unique_ptr<HnswIndex>> HnswIndex::Create(int dimension, const HnswOptions& options) {
  C3PO_RETURN_IF_ERROR(CheckOptions(dimension, options));
  auto impl = std::make_unique<Impl>(dimension, options);
  {
    WriterLock lock(impl->mutex);
    C3PO_RETURN_IF_ERROR(impl->MakeGraph(kFirstCapacity));
  }
  return std::unique_ptr<HnswIndex>(new HnswIndex(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<HnswIndex>> HnswIndex::Load(const std::string& path, int dimension,
                                                           const HnswOptions& options, int64_t generation,
                                                           int64_t nodes_max) {
  C3PO_RETURN_IF_ERROR(CheckOptions(dimension, options));
  absl::StatusOr<std::string> bytes = ReadWholeFile(path, HnswFileBytesMax(nodes_max, dimension, options.m));
  if (!bytes.ok()) return absl::Status(bytes.status().code(), absl::StrCat("graph file ", bytes.status().message()));
  absl::StatusOr<HnswGraph> image = DecodeHnswGraph(*bytes);
  if (!image.ok()) {
    return absl::Status(image.status().code(), absl::StrCat("graph file ", path, ": ", image.status().message()));
  }
  if (image->dimension != dimension || image->m != options.m || image->ef_construction != options.ef_construction) {
    return absl::FailedPreconditionError(absl::StrCat(
        "graph file ", path, ": made with dimension ", image->dimension, ", m ", image->m, ", ef_construction ",
        image->ef_construction, "; wanted are ", dimension, ", ", options.m, ", ", options.ef_construction));
  }
  if (image->generation != generation) {
    return absl::FailedPreconditionError(
        absl::StrCat("graph file ", path, ": of generation ", image->generation, ", the store is at ", generation));
  }
  auto impl = std::make_unique<Impl>(dimension, options);
  {
    WriterLock lock(impl->mutex);
    C3PO_RETURN_IF_ERROR(impl->CopyIn(*image));
  }
  return std::unique_ptr<HnswIndex>(new HnswIndex(std::move(impl)));
}

absl::Status HnswIndex::Save(const std::string& path, int64_t generation) const {
  HnswGraph image;
  {
    ReaderLock lock(impl_->mutex);
    C3PO_RETURN_IF_ERROR(impl_->CheckUsable());
    image = impl_->CopyOut(generation);
  }
  return WriteFileDurably(path, EncodeHnswGraph(image));
}

absl::Status HnswIndex::Add(int64_t label, absl::Span<const float> vector) {
  return AddAndTrace(label, vector, nullptr);
}

absl::StatusOr<HnswGraph> HnswIndex::CopyGraph() const {
  ReaderLock lock(impl_->mutex);
  C3PO_RETURN_IF_ERROR(impl_->CheckUsable());
  return impl_->CopyOut(/*generation=*/0);
}

size_t HnswIndex::Candidates(size_t wanted, const HnswOptions& options, size_t nodes, size_t live) {
  return std::max(wanted, static_cast<size_t>(options.ef_search)) * nodes / live;
}

bool HnswIndex::AsksGraph(size_t candidates, size_t nodes, size_t live, bool filtered) {
  if (!filtered) return candidates < nodes;
  return candidates <= kFilteredCandidatesMax && kComparedOfCandidate * candidates < live;
}

absl::Status HnswIndex::AddAndTrace(int64_t label, absl::Span<const float> vector, HnswAddition* addition) {
  C3PO_RETURN_IF_ERROR(CheckVector("vector", vector, impl_->dimension));
  WriterLock lock(impl_->mutex);
  C3PO_RETURN_IF_ERROR(impl_->CheckUsable());
  if (impl_->node_of_label.count(label) > 0) {
    return absl::AlreadyExistsError(absl::StrCat("label ", label, " is in the index"));
  }
  const absl::Status status = Guarded("cannot add", [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(impl_->mutex) {
    const size_t node = impl_->label_of_node.size();
    if (node == impl_->graph->max_elements_) impl_->graph->resizeIndex(node * 2);
    impl_->label_of_node.push_back(label);
    impl_->removed.push_back(0);
    impl_->node_of_label[label] = node;
    impl_->graph->addPoint(vector.data(), node);
    if (addition != nullptr) *addition = impl_->TraceOf(static_cast<hnswlib::tableint>(node));
  });
  if (!status.ok()) impl_->broken = true;
  return status;
}

absl::Status HnswIndex::Remove(int64_t label) {
  WriterLock lock(impl_->mutex);
  C3PO_RETURN_IF_ERROR(impl_->CheckUsable());
  const auto found = impl_->node_of_label.find(label);
  if (found == impl_->node_of_label.end()) {
    return absl::NotFoundError(absl::StrCat("label ", label, " is not in the index"));
  }
  impl_->removed[found->second] = 1;
  impl_->node_of_label.erase(found);
  return absl::OkStatus();
}

// All queries are searched under one lock. Those that the graph does not answer are compared with every node, in one
// pass over the nodes.
absl::StatusOr<std::vector<std::vector<LabeledDistance>>> HnswIndex::FindNearest(absl::Span<const float> queries, int k,
                                                                                 const LabelFilter* filter) const {
  const auto dimension = static_cast<size_t>(impl_->dimension);
  std::vector<std::vector<LabeledDistance>> found(queries.size() / dimension);
  ReaderLock lock(impl_->mutex);
  C3PO_RETURN_IF_ERROR(impl_->CheckUsable());
  const Impl::Live live = impl_->LiveNodes(filter);
  const size_t wanted = std::min(static_cast<size_t>(k), live.count);
  if (wanted == 0) return found;
  std::vector<size_t> unanswered;
  for (size_t i = 0; i < found.size(); ++i) {
    C3PO_ASSIGN_OR_RETURN(const bool answered, impl_->SearchGraph(&queries[i * dimension], wanted, live, found[i]));
    if (!answered) unanswered.push_back(i);
  }
  impl_->CompareAll(queries, unanswered, wanted, live, found);
  return found;
}

int64_t HnswIndex::NodesMax(int64_t size) { return size + std::max(kTombstonesMin, size); }

bool HnswIndex::WantsRebuilding() const {
  ReaderLock lock(impl_->mutex);
  return static_cast<int64_t>(impl_->label_of_node.size()) >
         NodesMax(static_cast<int64_t>(impl_->node_of_label.size()));
}

int64_t HnswIndex::MemoryBytes() const {
  constexpr size_t kOfNode = 150;
  const size_t of_each =
      sizeof(float) * static_cast<size_t>(impl_->dimension) + 8 * static_cast<size_t>(impl_->options.m) + kOfNode;
  ReaderLock lock(impl_->mutex);
  return static_cast<int64_t>(of_each * impl_->label_of_node.size());
}

size_t HnswIndex::size() const {
  ReaderLock lock(impl_->mutex);
  return impl_->node_of_label.size();
}

int HnswIndex::dimension() const { return impl_->dimension; }

size_t HnswIndex::tombstones() const {
  ReaderLock lock(impl_->mutex);
  return impl_->label_of_node.size() - impl_->node_of_label.size();
}

bool HnswIndex::Holds(int64_t label, absl::Span<const float> vector) const {
  ReaderLock lock(impl_->mutex);
  const auto found = impl_->node_of_label.find(label);
  return found != impl_->node_of_label.end() && vector.size() == static_cast<size_t>(impl_->dimension) &&
         std::memcmp(impl_->VectorOf(found->second), vector.data(), vector.size() * sizeof(float)) == 0;
}

}  // namespace c3po
