#ifndef C3PO_INDEX_SEARCH_CUDA_DEVICE_GRAPH_H_
#define C3PO_INDEX_SEARCH_CUDA_DEVICE_GRAPH_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "index/search/cuda/index_device.h"
#include "index/search/hnsw_file.h"
#include "index/search/hnsw_index.h"

namespace c3po {

// The links of a HnswIndex in a device's memory, as beam_search.h's kernel walks them: each node's list at a fixed
// place, filled up with kNoLink. The vectors lie in DeviceRows, in the nodes' order.
//
// Nothing reaches the device unchecked: every link leads to a node that is there and in the layer, and no list is
// longer than its place. Threads and failures as DeviceRows.
class DeviceGraph {
 public:
  // m: HnswOptions::m.
  DeviceGraph(IndexDevice* device, int m) : device_(device), m_(m) {}

  // Room for so many nodes in all, and for the upper layers of one more.
  absl::Status Reserve(IndexChange& change, int64_t nodes);
  bool HasRoom() const { return nodes() < capacity_ && upper_count_ + kLayersOfNode <= upper_capacity_; }
  // Into an empty one. DataLoss: `graph` does not pass CheckHnswGraph, or is of another m.
  absl::Status Load(IndexChange& change, const HnswGraph& graph);
  // After Reserve. DataLoss: it is not the next node, or a list of its leads where none may; nothing is written then.
  absl::Status Add(IndexChange& change, const HnswAddition& addition);

  // Of `args`, what the graph knows.
  void Describe(cuda::BeamArgs& args) const;
  int64_t nodes() const { return static_cast<int64_t>(first_lists_.size()); }

  struct Memory {
    IndexMemory links, upper_lists, upper_links;
  };
  std::shared_ptr<const Memory> memory() const { return memory_; }

 private:
  static constexpr int64_t kLayersOfNode = 64;  // At most: CheckHnswGraph.

  absl::Status CheckAddition(const HnswAddition& addition) const;
  void WriteList(IndexChange& change, const HnswLinks& list) const;
  void WriteNode(IndexChange& change, int32_t layer);

  IndexDevice* const device_;
  const int m_;
  std::shared_ptr<const Memory> memory_;
  int64_t capacity_ = 0;               // Nodes.
  int64_t upper_capacity_ = 0;         // Lists.
  int64_t upper_count_ = 0;            // Lists in use.
  std::vector<uint32_t> first_lists_;  // [nodes]: of the upper lists.
  std::vector<int32_t> layers_;        // [nodes]
  int32_t top_layer_ = -1;
  uint32_t entry_node_ = 0;
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_CUDA_DEVICE_GRAPH_H_
