// The search of beam_search.h. A chain of some hundred expansions, each of two rounds of loads (a node's links, then
// their vectors): what counts is the latency of one expansion, so a whole block works on it.

#include "index/base/cuda/device.h"
#include "index/search/cuda/beam_search.h"
#include "index/search/cuda/row_distance.h"

namespace c3po::cuda {
namespace {

using device::AtomicAdd;
using device::AtomicOr;
using device::BitsOf;
using device::Block;
using device::kRowsOfWarp;
using device::RowGroup;
using device::RowLane;
using device::ShuffleXor;
using device::SyncBlock;
using device::Thread;
using device::Threads;
using device::Warp;
using device::Warps;

constexpr uint64_t kNoKey = ~uint64_t{0};

// Keys order by squared distance, then node. The lowest bit, "expanded", never decides: a node is in the list once.
C3PO_DEVICE uint64_t KeyOf(float squared, uint32_t node) {
  return static_cast<uint64_t>(BitsOf(squared)) << 32 | node << 1;
}
C3PO_DEVICE uint32_t SquaredOf(uint64_t key) { return static_cast<uint32_t>(key >> 32); }
C3PO_DEVICE uint32_t NodeOf(uint64_t key) { return static_cast<uint32_t>(key) >> 1; }
C3PO_DEVICE bool IsExpanded(uint64_t key) { return (key & 1) != 0; }

// A block's shared memory.
struct Beam {
  float* query;
  uint64_t* list;    // [ef]: the beam
  uint64_t* merged;  // [ef]: where the next one is made; the two take turns
  uint64_t* fresh;   // [links_max]: keys of the links under way
  uint64_t* sorted;  // [links_max]: those that enter, ascending
  uint32_t* nodes;   // [links_max]: links not seen before
  int* fresh_count;
  int* entering_count;
  int* first_open;  // [warps]: the least place in the list of a node that is not expanded
  uint32_t* visited;
};

C3PO_DEVICE int RoundedUp(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

C3PO_DEVICE Beam LayOut(const BeamArgs& args) {
  Beam beam;
  beam.query = static_cast<float*>(device::SharedMemory());
  beam.list = reinterpret_cast<uint64_t*>(beam.query + RoundedUp(args.query_stride, 4));
  beam.merged = beam.list + RoundedUp(args.ef, 2);
  beam.fresh = beam.merged + RoundedUp(args.ef, 2);
  beam.sorted = beam.fresh + RoundedUp(args.links_max, 2);
  beam.nodes = reinterpret_cast<uint32_t*>(beam.sorted + RoundedUp(args.links_max, 2));
  beam.fresh_count = reinterpret_cast<int*>(beam.nodes + RoundedUp(args.links_max, 4));
  beam.entering_count = beam.fresh_count + 1;
  beam.first_open = beam.fresh_count + 2;
  beam.visited = args.visited != nullptr ? args.visited + int64_t{Block()} * args.visited_words
                                         : reinterpret_cast<uint32_t*>(beam.fresh_count + 64);
  return beam;
}

// Warp. The distance of the query to one node in each group of eight lanes.
C3PO_DEVICE float DistanceTo(const BeamArgs& args, const Beam& beam, uint32_t node) {
  const float* const address[1] = {args.rows + static_cast<int64_t>(node) * args.row_stride};
  float squared[1][1];
  device::SquaredDistances<1, 1, 12>(beam.query, 0, address, args.dimension, squared);
  return squared[0][0];
}

C3PO_DEVICE uint64_t LeastOfWarp(uint64_t key) {
  for (int mask = 16; mask >= 1; mask /= 2) {
    const uint64_t other = ShuffleXor(key, mask);
    key = other < key ? other : key;
  }
  return key;
}

// Block. From the entry node down to layer 1: the node where layer 0 is entered, with its distance, as a key.
C3PO_DEVICE uint64_t Descend(const BeamArgs& args, const Beam& beam) {
  const int links_max = args.links_max / 2;
  uint32_t node = args.entry_node;
  float distance = DistanceTo(args, beam, node);
  for (int layer = args.top_layer; layer >= 1; --layer) {
    for (;;) {
      const uint32_t* const links = args.upper_links + (int64_t{args.upper_lists[node]} + layer - 1) * links_max;
      for (int base = Warp() * kRowsOfWarp; base < links_max; base += Warps() * kRowsOfWarp) {
        const int place = base + RowGroup();
        const uint32_t link = place < links_max ? links[place] : kNoLink;
        const float squared = DistanceTo(args, beam, link != kNoLink ? link : node);
        if (RowLane() == 0 && place < links_max) {
          // Of equally near links the first.
          beam.fresh[place] = link != kNoLink ? static_cast<uint64_t>(BitsOf(squared)) << 32 | place : kNoKey;
        }
      }
      SyncBlock();
      uint64_t nearest = kNoKey;
      for (int i = device::Lane(); i < links_max; i += 32) nearest = beam.fresh[i] < nearest ? beam.fresh[i] : nearest;
      nearest = LeastOfWarp(nearest);
      SyncBlock();
      if (nearest == kNoKey || !(SquaredOf(nearest) < BitsOf(distance))) break;
      node = links[static_cast<uint32_t>(nearest)];
      distance = device::FloatOf(SquaredOf(nearest));
    }
  }
  return KeyOf(distance, node);
}

// Block. The links of `node` that were not seen before, into beam.nodes in any order; they count as seen from now on.
C3PO_DEVICE void CollectLinks(const BeamArgs& args, const Beam& beam, uint32_t node) {
  const uint32_t* const links = args.links + static_cast<int64_t>(node) * args.links_max;
  for (int i = Thread(); i < args.links_max; i += Threads()) {
    const uint32_t link = links[i];
    if (link == kNoLink) continue;
    const uint32_t bit = 1u << (link % 32);
    if ((AtomicOr(&beam.visited[link / 32], bit) & bit) != 0) continue;
    beam.nodes[AtomicAdd(beam.fresh_count, 1)] = link;
  }
  SyncBlock();  // All new links are there.
}

// Block. Their distances, into beam.fresh; those that enter a list of `count` nodes, into beam.sorted by rank.
C3PO_DEVICE int RankLinks(const BeamArgs& args, const Beam& beam, const uint64_t* list, int count) {
  const int fresh = *beam.fresh_count;
  const uint32_t limit = count == args.ef ? SquaredOf(list[count - 1]) : kNoNeighbor;
  for (int base = Warp() * kRowsOfWarp; base < fresh; base += Warps() * kRowsOfWarp) {
    const int place = base + RowGroup();
    const uint32_t node = beam.nodes[place < fresh ? place : fresh - 1];
    const float squared = DistanceTo(args, beam, node);
    if (RowLane() == 0 && place < fresh) {
      const bool enters = BitsOf(squared) < limit;
      beam.fresh[place] = enters ? KeyOf(squared, node) : kNoKey;
      if (enters) AtomicAdd(beam.entering_count, 1);
    }
  }
  SyncBlock();  // All distances are there.
  for (int i = Thread(); i < fresh; i += Threads()) {
    const uint64_t key = beam.fresh[i];
    if (key == kNoKey) continue;
    int rank = 0;
    for (int j = 0; j < fresh; ++j) rank += beam.fresh[j] < key ? 1 : 0;
    beam.sorted[rank] = key;
  }
  const int entering = *beam.entering_count;
  SyncBlock();
  return entering;
}

// How many of `count` ascending keys are less than `key`.
C3PO_DEVICE int CountLess(const uint64_t* keys, int count, uint64_t key) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (keys[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Block. Merges `entering` sorted keys and the list of `count`, of which the one at `expanded` has been expanded now,
// into `to`; returns the place there of the nearest node that is not expanded, or `none`.
C3PO_DEVICE int MergeInto(const BeamArgs& args, const Beam& beam, const uint64_t* list, int count, int expanded,
                          int entering, uint64_t* to, int none) {
  int first_open = none;
  for (int i = Thread(); i < count; i += Threads()) {
    const uint64_t key = list[i];
    const int place = i + CountLess(beam.sorted, entering, key);
    if (place >= args.ef) continue;
    to[place] = i == expanded ? key | 1 : key;
    if (i != expanded && !IsExpanded(key) && place < first_open) first_open = place;
  }
  for (int i = Thread(); i < entering; i += Threads()) {
    const int place = i + CountLess(list, count, beam.sorted[i]);
    if (place >= args.ef) continue;
    to[place] = beam.sorted[i];
    if (place < first_open) first_open = place;
  }
  for (int mask = 16; mask >= 1; mask /= 2) {
    const int other = ShuffleXor(first_open, mask);
    first_open = other < first_open ? other : first_open;
  }
  if (device::Lane() == 0) beam.first_open[Warp()] = first_open;
  if (Thread() == 0) {
    *beam.fresh_count = 0;
    *beam.entering_count = 0;
  }
  SyncBlock();  // The list is whole.
  for (int warp = 0; warp < Warps(); ++warp) {
    first_open = beam.first_open[warp] < first_open ? beam.first_open[warp] : first_open;
  }
  return first_open;
}

C3PO_DEVICE bool IsAdmitted(const BeamArgs& args, uint32_t node) {
  return (args.admitted[node / 32] >> (node % 32) & 1) != 0;
}

// Block. The k nearest of the list that are no tombstones, by distance, then label. The list is by distance already:
// only among equal distances the places of labels have to be counted.
C3PO_DEVICE void WriteFound(const BeamArgs& args, const uint64_t* list, int count) {
  FoundRow* const found = args.found + int64_t{Block()} * args.k;
  for (int i = Thread(); i < args.k; i += Threads()) found[i] = FoundRow{-1, kNoNeighbor, kNoNeighbor};
  SyncBlock();
  int live = 0;
  for (int i = Thread(); i < count; i += Threads()) {
    const uint32_t node = NodeOf(list[i]), squared = SquaredOf(list[i]);
    if (!IsAdmitted(args, node)) continue;
    ++live;
    int place = 0;
    for (int j = 0; j < count && SquaredOf(list[j]) <= squared; ++j) {
      const uint32_t other = NodeOf(list[j]);
      if (j == i || !IsAdmitted(args, other)) continue;
      if (SquaredOf(list[j]) < squared || args.labels[other] < args.labels[node]) ++place;
    }
    if (place < args.k) found[place] = FoundRow{args.labels[node], squared, node};
  }
  for (int mask = 16; mask >= 1; mask /= 2) live += ShuffleXor(live, mask);
  if (device::Lane() == 0) AtomicAdd(&args.counts[Block()], static_cast<uint32_t>(live));
}

C3PO_KERNEL void C3PO_BOUNDS(kBeamThreads, 1) BeamSearch(BeamArgs args) {
  const Beam beam = LayOut(args);
  for (int i = Thread(); i < args.query_stride; i += Threads()) {
    beam.query[i] = args.queries[int64_t{Block()} * args.query_stride + i];
  }
  for (int i = Thread(); i < args.visited_words; i += Threads()) beam.visited[i] = 0;
  if (Thread() == 0) {
    *beam.fresh_count = 0;
    *beam.entering_count = 0;
    args.counts[Block()] = 0;
  }
  SyncBlock();
  const uint64_t entry = Descend(args, beam);
  if (Thread() == 0) {
    beam.list[0] = entry;
    beam.visited[NodeOf(entry) / 32] |= 1u << (NodeOf(entry) % 32);
  }
  SyncBlock();
  const int none = args.ef;
  uint64_t *list = beam.list, *merged = beam.merged;
  int count = 1, open = 0;
  while (open < none) {
    CollectLinks(args, beam, NodeOf(list[open]));
    const int entering = RankLinks(args, beam, list, count);
    open = MergeInto(args, beam, list, count, open, entering, merged, none);
    count = count + entering < args.ef ? count + entering : args.ef;
    uint64_t* const old = list;
    list = merged;
    merged = old;
  }
  WriteFound(args, list, count);
}

}  // namespace

Error LaunchBeamSearch(const BeamArgs& args, Stream stream) {
  if (args.k < 1 || args.ef < args.k || args.ef > kBeamWidthMax) return "beam search: ef is out of range";
  if (args.links_max < 2 || args.links_max > kBeamLinksMax || args.links_max % 2 != 0)
    return "beam search: links out of range";
  if (args.node_count < 1 || args.node_count > kBeamNodesMax ||
      args.entry_node >= static_cast<uint32_t>(args.node_count) ||
      args.visited_words != BeamVisitedWords(args.node_count)) {
    return "beam search: nodes out of range";
  }
  const int64_t shared = BeamSharedBytes(args.query_stride, args.ef, args.links_max) +
                         (args.visited == nullptr ? int64_t{4} * args.visited_words : 0);
  return device::Launch(BeamSearch, device::Grid{args.query_count}, kBeamThreads, static_cast<int>(shared), stream,
                        args);
}

}  // namespace c3po::cuda
