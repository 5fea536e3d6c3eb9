#ifndef C3PO_INDEX_SEARCH_CUDA_BEAM_SEARCH_H_
#define C3PO_INDEX_SEARCH_CUDA_BEAM_SEARCH_H_

#include <cstdint>

#include "index/search/cuda/scan.h"

// Search of a navigable small-world graph (Malkov and Yashunin, arXiv 1603.09320) that hnswlib linked, one block a
// query, in hnswlib's order, so that it finds the same nodes:
//
// - Above layer 0 a query goes from the entry node to the nearest of a node's links as long as that is strictly nearer;
// of
//   equally near links to the first.
// - In layer 0 it keeps the `ef` nearest nodes seen and expands the nearest one of them that is not expanded yet. Links
// seen
//   before are passed over. A new one enters where fewer than `ef` are kept, or where it is strictly nearer than the
//   farthest. The search ends when all kept nodes are expanded.
//
// hnswlib takes a node's links one after the other and has a second queue of nodes to expand; here a node's links enter
// together, and the one list serves both ends. The results differ by ties only: the farthest distance kept can only
// shrink, so what does not belong to the `ef` nearest of old and new is never expanded there either, except where its
// distance equals the farthest one kept.
//
// A tombstone, and what a search's filter does not admit, is passed through like any node, but is not returned; so a
// caller asks for more candidates where there are some.
namespace c3po::cuda {

inline constexpr uint32_t kNoLink = 0xffffffffu;  // behind a node's last link
inline constexpr int kBeamThreads = 256;
inline constexpr int kBeamNodesMax = (1 << 30) - 1;
inline constexpr int kBeamWidthMax = 4096;  // ef, at most.
inline constexpr int kBeamLinksMax = 512;   // Of a node in layer 0, at most.

// All addresses are in device memory. Links lead to nodes < node_count only (the host checks them).
struct BeamArgs {
  const float* rows = nullptr;         // [node_count][row_stride], as ScanArgs
  const uint32_t* admitted = nullptr;  // a bit a node: whether it may be found, as no tombstone and by the filter
  const int64_t* labels = nullptr;
  int node_count = 0;
  int row_stride = 0;
  int dimension = 0;
  const uint32_t* links = nullptr;        // layer 0: [node_count][links_max]
  const uint32_t* upper_lists = nullptr;  // [node_count]: which of `upper_links` is the node's list in layer 1
  const uint32_t* upper_links =
      nullptr;        // [lists][links_max / 2]; a node's lists of layers 1, 2, ... follow each other
  int links_max = 0;  // 2 m
  uint32_t entry_node = 0;
  int top_layer = 0;
  const float* queries = nullptr;  // [query_count][query_stride]
  int query_count = 0;
  int query_stride = 0;
  int ef = 0;  // k..kBeamWidthMax
  int k = 0;
  FoundRow* found = nullptr;    // [query_count][k], by distance, then label
  uint32_t* counts = nullptr;   // [query_count]: of the ef nearest, how many are admitted; k of them are found at most
  uint32_t* visited = nullptr;  // [query_count][visited_words], cleared by the kernel; null: in shared memory
  int visited_words = 0;        // BeamVisitedWords(node_count)
};

constexpr int BeamVisitedWords(int node_count) { return RoundUp((node_count + 31) / 32, 4); }

// Without `visited`: the query, two lists, a node's links twice over, what warps tell each other.
constexpr int64_t BeamSharedBytes(int query_floats, int ef, int links_max) {
  return int64_t{4} * RoundUp(query_floats, 4) + 16 * RoundUp(ef, 2) + 16 * RoundUp(links_max, 2) +
         4 * RoundUp(links_max, 4) + 4 * 64;
}

Error LaunchBeamSearch(const BeamArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_INDEX_SEARCH_CUDA_BEAM_SEARCH_H_
