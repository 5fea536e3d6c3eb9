#ifndef C3PO_INDEX_SEARCH_HNSW_INDEX_H_
#define C3PO_INDEX_SEARCH_HNSW_INDEX_H_

#include <memory>
#include <string>
#include <vector>

#include "index/search/hnsw_file.h"
#include "index/search/neighbor_index.h"

namespace c3po {

struct HnswOptions {
  int m = 16;                 // Links per node and layer, 2..256.
  int ef_construction = 200;  // Candidates looked at when a node is linked, m..10000.
  int ef_search = 128;  // Candidates kept by a search, 1..10000; a search for k neighbors keeps max(ef_search, k).
  uint32_t seed = 100;  // Of the nodes' layers.
};

// A node's links in one layer.
struct HnswLinks {
  uint32_t node = 0;
  int32_t layer = 0;
  std::vector<uint32_t> links;
};

// What one Add changed of the graph, for whoever keeps a copy of it.
struct HnswAddition {
  uint32_t node = 0;               // The new one.
  int32_t layer = 0;               // The highest that it is in.
  int32_t top_layer = 0;           // Of the graph now.
  uint32_t entry_node = 0;         // Of the graph now.
  std::vector<HnswLinks> changed;  // The new node's lists, from layer 0, and those of its neighbors, as they are now.
};

// An approximate index: a navigable small-world graph searched by hnswlib. Results may miss true neighbors (recall,
// measured in tests/index/search); the distances of those found are exact and equal ExactIndex's.
//
// A removed vector leaves a tombstone that searches still pass through, and ask for more candidates because of it. Once
// tombstones() outnumber size(), and are 1024 at least, the index WantsRebuilding. What a filter does not admit is to
// its search as a tombstone is: hnswlib 0.6.2 has no filters, and later versions go on until ef admitted nodes are
// kept, which asking for as many more candidates comes to. Memory: 4 * dimension + 8 * m + about 150 bytes per node,
// tombstones included; it grows by doubling. Add takes the index exclusively, for about as long as two searches. An
// Internal status (the library threw: out of memory) leaves an index that answers Internal from then on.
class HnswIndex : public NeighborIndex {
 public:
  // InvalidArgument: a dimension < 1 or an option out of its range.
  static absl::StatusOr<std::unique_ptr<HnswIndex>> Create(int dimension, const HnswOptions& options);

  // Reads what Save wrote; the format and its checks are in hnsw_file.h. Nothing reaches the library unverified.
  // NotFound: no such file. InvalidArgument: no regular file, or larger than a graph of `nodes_max` nodes can be; then
  // nothing of it is read. DataLoss: damaged. FailedPrecondition: sound, but of another dimension, m or ef_construction
  // than asked for, of another generation, or of another version of the format. On any of these the caller builds the
  // index anew.
  static absl::StatusOr<std::unique_ptr<HnswIndex>> Load(const std::string& path, int dimension,
                                                         const HnswOptions& options, int64_t generation,
                                                         int64_t nodes_max);

  ~HnswIndex() override;

  // The nodes, tombstones included, of an index of so many vectors that does not want rebuilding: so many at most.
  static int64_t NodesMax(int64_t size);

  absl::Status Add(int64_t label, absl::Span<const float> vector) override;
  absl::Status Remove(int64_t label) override;
  bool approximate() const override { return true; }
  bool WantsRebuilding() const override;
  // Replaces `path` atomically (see WriteFileDurably); needs twice the graph's size in memory for the time of writing.
  absl::Status Save(const std::string& path, int64_t generation) const override;
  int64_t MemoryBytes() const override;  // By the formula above.
  size_t size() const override;
  int dimension() const override;

  // Add, and what it changed; `addition` may be null.
  absl::Status AddAndTrace(int64_t label, absl::Span<const float> vector, HnswAddition* addition);
  // The graph as it is. Node i is the i-th vector that was ever added.
  absl::StatusOr<HnswGraph> CopyGraph() const;
  // How many nodes a search for `wanted` vectors asks a graph of `nodes` for first, of which `live` >= 1 may be found
  // (no tombstones, admitted by the filter): as many as hold max(wanted, ef_search) live ones when these lie evenly.
  static size_t Candidates(size_t wanted, const HnswOptions& options, size_t nodes, size_t live);
  // Whether asking the graph for so many is less work than comparing all live nodes, which a search does instead. A
  // graph compares some kComparedOfCandidate nodes for a candidate. Without a filter: as long as some nodes are left.
  static bool AsksGraph(size_t candidates, size_t nodes, size_t live, bool filtered);
  static constexpr size_t kFilteredCandidatesMax = 4096;  // Of a search with a filter.
  static constexpr size_t kComparedOfCandidate = 8;

  size_t tombstones() const;
  // Whether `label` is present with exactly these bytes as its vector.
  bool Holds(int64_t label, absl::Span<const float> vector) const;

 private:
  absl::StatusOr<std::vector<std::vector<LabeledDistance>>> FindNearest(absl::Span<const float> queries, int k,
                                                                        const LabelFilter* filter) const override;

  struct Impl;
  explicit HnswIndex(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_HNSW_INDEX_H_
