#ifndef C3PO_INDEX_SEARCH_HNSW_FILE_H_
#define C3PO_INDEX_SEARCH_HNSW_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// A navigable small-world graph (Malkov and Yashunin, arXiv 1603.09320) as plain values, independent of the library
// that searches it. Nodes count from 0.
struct HnswGraph {
  int32_t dimension = 0;
  int32_t m = 0;                // Links per node and layer; twice as many in layer 0.
  int32_t ef_construction = 0;  // Candidates looked at when a node was linked.
  int64_t generation = 0;       // Of the store that the vectors came from.
  int32_t top_layer = -1;       // Of the whole graph; -1: no nodes.
  uint32_t entry_node = 0;
  std::vector<int64_t> labels;   // [nodes]
  std::vector<uint8_t> removed;  // [nodes], 1: a tombstone, passed through but never returned.
  std::vector<int32_t> layers;   // [nodes], the highest layer that the node is in.
  std::vector<float> vectors;    // [nodes, dimension]
  std::vector<uint32_t> links;   // For each node, for each of its layers from 0: a count, then so many nodes.
};

// OK when a search of the graph stays within it: sizes agree, every link leads to another existing node that is in that
// layer, counts are within m, the entry node is in the top layer, labels of live nodes differ, vectors are finite. Else
// DataLoss.
absl::Status CheckHnswGraph(const HnswGraph& graph);

// The bytes of a graph file. Numbers are little-endian.
//   header, 168 bytes: magic "C3POHNSW"; u32 version = 1; u32 dimension, m, ef_construction; i64 generation; i32 top
//   layer;
//     u32 entry node; u64 nodes; u64 link words; u64 payload bytes; reserved zeros up to byte 104; then SHA-256 of the
//     payload and of the header's bytes before this digest, 32 bytes each.
//   payload: labels, vectors, links, layers, removed, each as in HnswGraph.
std::string EncodeHnswGraph(const HnswGraph& graph);

// More bytes than the file of a graph of so many nodes has: each node counted with full links in layer 0 and in four
// layers above (1 / (m - 1) is what they have on average), plus 1 MiB, for graphs too small for averages.
// nodes >= 0, dimension and m as in HnswGraph; saturates.
int64_t HnswFileBytesMax(int64_t nodes, int dimension, int m);

// The inverse. Nothing of the file is believed before both digests and the exact size agree, and CheckHnswGraph passes,
// so that a cut or altered file of any kind is a DataLoss status. A version of another build: FailedPrecondition.
absl::StatusOr<HnswGraph> DecodeHnswGraph(absl::string_view bytes);

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_HNSW_FILE_H_
