// The scans of scan.h. A block keeps its nearest rows of each query in a list in shared memory: rows nearer than the
// list's last are appended in whatever order they come, and now and then the list is sorted and cut.

#include "index/base/cuda/device.h"
#include "index/search/cuda/row_distance.h"
#include "index/search/cuda/scan.h"

namespace c3po::cuda {
namespace {

using device::AtomicAdd;
using device::BitsOf;
using device::Block;
using device::Blocks;
using device::BlockY;
using device::kRowsOfWarp;
using device::RowGroup;
using device::RowLane;
using device::SyncBlock;
using device::Thread;
using device::Threads;
using device::Warp;
using device::Warps;

constexpr uint64_t kNoEntry = ~uint64_t{0};

C3PO_DEVICE uint64_t EntryOf(float squared, int row) {
  return static_cast<uint64_t>(BitsOf(squared)) << 32 | static_cast<uint32_t>(row);
}
C3PO_DEVICE uint32_t SquaredOf(uint64_t entry) { return static_cast<uint32_t>(entry >> 32); }
C3PO_DEVICE int RowOf(uint64_t entry) { return static_cast<int>(static_cast<uint32_t>(entry)); }

// Labels are looked at where distances are equal only.
C3PO_DEVICE bool Nearer(uint64_t a, uint64_t b, const int64_t* labels) {
  if (SquaredOf(a) != SquaredOf(b)) return SquaredOf(a) < SquaredOf(b);
  return a != b && labels[RowOf(a)] < labels[RowOf(b)];
}

// The lists of a block's queries, in shared memory.
struct BlockLists {
  uint64_t* entries;     // [queries][capacity], the first counts[q] in use
  uint64_t* thresholds;  // [queries]: only what is nearer can be among the kept; kNoEntry: everything can
  int* counts;           // [queries]
  int queries;
  int capacity;  // a power of two
  const int64_t* labels;
};

// Block.
C3PO_DEVICE void Clear(const BlockLists& lists) {
  if (Thread() < lists.queries) {
    lists.thresholds[Thread()] = kNoEntry;
    lists.counts[Thread()] = 0;
  }
  SyncBlock();
}

// There is room for it.
C3PO_DEVICE void Offer(const BlockLists& lists, int query, uint64_t entry) {
  if (!Nearer(entry, lists.thresholds[query], lists.labels)) return;
  lists.entries[query * lists.capacity + AtomicAdd(&lists.counts[query], 1)] = entry;
}

// Block. Sorts every list (bitonic, as long as the longest one) and cuts it to the `kept` nearest.
C3PO_DEVICE void Keep(const BlockLists& lists, int kept) {
  SyncBlock();
  int most = 1;
  for (int q = 0; q < lists.queries; ++q) most = lists.counts[q] > most ? lists.counts[q] : most;
  int shift = 0;
  while ((1 << shift) < most) ++shift;
  const int size = 1 << shift;
  for (int i = Thread(); i < lists.queries << shift; i += Threads()) {
    const int q = i >> shift, place = i & (size - 1);
    if (place >= lists.counts[q]) lists.entries[q * lists.capacity + place] = kNoEntry;
  }
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance >= 1; distance /= 2) {
      SyncBlock();  // What the step before exchanged is seen.
      for (int i = Thread(); i < lists.queries * (size / 2); i += Threads()) {
        const int q = i >> (shift - 1), pair = i & (size / 2 - 1);
        const int low = 2 * pair - (pair & (distance - 1));
        uint64_t* const a = lists.entries + q * lists.capacity + low;
        uint64_t* const b = a + distance;
        const uint64_t first = *a, second = *b;
        const bool ascending = (low & run) == 0;
        if (Nearer(second, first, lists.labels) == ascending && first != second) {
          *a = second;
          *b = first;
        }
      }
    }
  }
  SyncBlock();
  if (Thread() < lists.queries) {
    const int q = Thread();
    if (lists.counts[q] >= kept) {
      lists.counts[q] = kept;
      lists.thresholds[q] = lists.entries[q * lists.capacity + kept - 1];
    }
  }
  SyncBlock();
}

C3PO_DEVICE bool Admitted(const ScanArgs& args, int row) {
  return row < args.row_count && (args.admitted[row / 32] >> (row % 32) & 1) != 0;
}

// Block. Offers the block's share of the rows; leaves the lists sorted and cut. distances(rows, squared) is called by
// whole warps.
template <int kQueries, int kRows, class Distances>
C3PO_DEVICE void ScanRows(const ScanArgs& args, const BlockLists& lists, int kept, const Distances& distances) {
  const int rows_of_warp = kRowsOfWarp * kRows;
  const int rows_of_step = Warps() * rows_of_warp;
  const int steps = (args.row_count + rows_of_step - 1) / rows_of_step;
  const int steps_between = (lists.capacity - kept) / rows_of_step;  // two sortings; at least 1
  int unsorted_steps = 0;
  for (int step = Block(); step < steps; step += Blocks()) {
    const int base = step * rows_of_step + Warp() * rows_of_warp + RowGroup();
    bool any = false;
    int rows[kRows];
    C3PO_UNROLL for (int r = 0; r < kRows; ++r) {
      const int row = base + r * kRowsOfWarp;
      any = any || Admitted(args, row);
      rows[r] = row < args.row_count ? row : args.row_count - 1;
    }
    if (device::Any(any)) {
      float squared[kQueries][kRows];
      distances(rows, squared);
      C3PO_UNROLL for (int r = 0; r < kRows; ++r) {
        if (RowLane() != 0 || !Admitted(args, base + r * kRowsOfWarp)) continue;
        C3PO_UNROLL for (int q = 0; q < kQueries; ++q) {
          if (q < lists.queries) Offer(lists, q, EntryOf(squared[q][r], rows[r]));
        }
      }
    }
    if (++unsorted_steps < steps_between) continue;
    unsorted_steps = 0;
    SyncBlock();
    bool crowded = false;
    for (int q = 0; q < lists.queries; ++q) {
      crowded = crowded || lists.counts[q] + steps_between * rows_of_step > lists.capacity;
    }
    SyncBlock();  // All have read the counts before anybody offers again.
    if (crowded) Keep(lists, kept);
  }
  Keep(lists, kept);
}

C3PO_DEVICE void WriteLists(const BlockLists& lists, int first_query, int kept, uint64_t* to) {
  for (int i = Thread(); i < lists.queries * kept; i += Threads()) {
    const int q = i / kept, place = i % kept;
    const int64_t list = (int64_t{first_query} + q) * Blocks() + Block();
    to[list * kept + place] = place < lists.counts[q] ? lists.entries[q * lists.capacity + place] : kNoEntry;
  }
}

// Copies `count` queries into shared memory: the first `floats` of each, then zeros up to `to_stride`. What is beyond
// `count`, up to `count_max`, is zeros.
C3PO_DEVICE void CopyQueries(const float* from, int from_stride, int floats, float* to, int to_stride, int count,
                             int count_max) {
  for (int i = Thread(); i < count_max * to_stride; i += Threads()) {
    const int q = i / to_stride, place = i % to_stride;
    to[i] = q < count && place < floats ? from[int64_t{q} * from_stride + place] : 0.0f;
  }
}

C3PO_DEVICE bool AnyWanted(const uint32_t* only, int first, int count) {
  if (only == nullptr) return true;
  bool any = false;
  for (int q = 0; q < count; ++q) any = any || only[first + q] != 0;
  return any;
}

// What a scan's block has in shared memory: queries, then lists.
C3PO_DEVICE BlockLists ListsBehind(float* queries, int query_stride, int queries_max, int queries_here, int capacity,
                                   const int64_t* labels) {
  BlockLists lists;
  lists.capacity = capacity;
  lists.queries = queries_here;
  lists.labels = labels;
  lists.entries = reinterpret_cast<uint64_t*>(queries + queries_max * query_stride);
  lists.thresholds = lists.entries + queries_max * lists.capacity;
  lists.counts = reinterpret_cast<int*>(lists.thresholds + queries_max);
  return lists;
}

template <int kQueries, int kRows, int kAhead>
C3PO_KERNEL void C3PO_BOUNDS(kScanThreads, 2) Scan(ScanArgs args) {
  const int first_query = BlockY() * kQueries;
  const int here = args.query_count - first_query < kQueries ? args.query_count - first_query : kQueries;
  if (!AnyWanted(args.only, first_query, here)) return;
  float* const queries = static_cast<float*>(device::SharedMemory());
  const BlockLists lists = ListsBehind(queries, args.query_stride, kQueries, here, args.list_entries, args.labels);
  CopyQueries(args.queries + int64_t{first_query} * args.query_stride, args.query_stride, args.query_stride, queries,
              args.query_stride, here, kQueries);
  Clear(lists);
  const int segments = kQueries == 1 ? args.segments : 1;  // Several of them and several queries: too many registers.
  const int segment_stride = args.query_stride / args.segments;
  ScanRows<kQueries, kRows>(args, lists, args.k, [&](const int(&rows)[kRows], float(&squared)[kQueries][kRows]) {
    for (int segment = 0; segment < segments; ++segment) {
      const float* addresses[kRows];
      C3PO_UNROLL for (int r = 0; r < kRows; ++r) {
        addresses[r] = args.rows + int64_t{rows[r]} * args.row_stride + args.segment_starts[segment];
      }
      float of_segment[kQueries][kRows];
      device::SquaredDistances<kQueries, kRows, kAhead>(queries + segment * segment_stride, args.query_stride,
                                                        addresses, args.dimension, of_segment);
      C3PO_UNROLL for (int q = 0; q < kQueries; ++q) {
        C3PO_UNROLL for (int r = 0; r < kRows; ++r) {
          squared[q][r] = segment == 0 ? of_segment[q][r] : device::Add(squared[q][r], of_segment[q][r]);
        }
      }
    }
  });
  WriteLists(lists, first_query, args.k, args.lists);
}

template <int kQueries, int kRows, int kAhead>
C3PO_KERNEL void C3PO_BOUNDS(kScanThreads, 2) HalfScan(HalfScanArgs args) {
  const int first_query = BlockY() * kQueries;
  const int left = args.exact.query_count - first_query;
  const int here = left < kQueries ? left : kQueries;
  float* const queries = static_cast<float*>(device::SharedMemory());
  const BlockLists lists = ListsBehind(queries, args.half_stride, kQueries, here, args.list_entries, args.exact.labels);
  CopyQueries(args.exact.queries + int64_t{first_query} * args.exact.query_stride, args.exact.query_stride,
              args.exact.dimension, queries, args.half_stride, here, kQueries);
  Clear(lists);
  ScanRows<kQueries, kRows>(
      args.exact, lists, args.kept, [&](const int(&rows)[kRows], float(&squared)[kQueries][kRows]) {
        const uint16_t* addresses[kRows];
        C3PO_UNROLL for (int r = 0; r < kRows; ++r) addresses[r] = args.halves + int64_t{rows[r]} * args.half_stride;
        device::HalfDistances<kQueries, kRows, kAhead>(queries, addresses, args.half_stride, squared);
      });
  WriteLists(lists, first_query, args.kept, args.lists);
}

// Block. Merges a query's lists, `blocks` of `kept` entries each, into one: sorted and cut.
C3PO_DEVICE void MergeLists(const BlockLists& lists, const uint64_t* from, int blocks, int kept) {
  Clear(lists);
  const int total = blocks * kept;
  for (int first = 0; first < total; first += Threads()) {
    const int i = first + Thread();
    if (i < total) {
      // The nearest of all lists come first, so that the threshold is low from then on.
      const uint64_t entry = from[i % blocks * kept + i / blocks];
      if (entry != kNoEntry) Offer(lists, 0, entry);
    }
    SyncBlock();  // All have offered.
    const bool crowded = first == 0 || lists.counts[0] + Threads() > lists.capacity;
    SyncBlock();
    if (crowded) Keep(lists, kept);
  }
  Keep(lists, kept);
}

C3PO_DEVICE void WriteFound(const BlockLists& lists, int k, FoundRow* found) {
  for (int i = Thread(); i < k; i += Threads()) {
    const bool is_there = i < lists.counts[0];
    const uint64_t entry = is_there ? lists.entries[i] : kNoEntry;
    found[i] = FoundRow{is_there ? lists.labels[RowOf(entry)] : -1, SquaredOf(entry), static_cast<uint32_t>(entry)};
  }
}

// A merging block's shared memory: entries, two thresholds, two counts, and 16-byte aligned the query.
C3PO_DEVICE BlockLists MergedLists(const int64_t* labels) {
  BlockLists lists;
  lists.entries = static_cast<uint64_t*>(device::SharedMemory());
  lists.thresholds = lists.entries + kMergeEntries;
  lists.counts = reinterpret_cast<int*>(lists.thresholds + 2);
  lists.queries = 1;
  lists.capacity = kMergeEntries;
  lists.labels = labels;
  return lists;
}

C3PO_KERNEL void C3PO_BOUNDS(kScanThreads, 2) Merge(ScanArgs args) {
  const int query = Block();
  if (!AnyWanted(args.only, query, 1)) return;
  const BlockLists lists = MergedLists(args.labels);
  MergeLists(lists, args.lists + int64_t{query} * args.blocks * args.k, args.blocks, args.k);
  WriteFound(lists, args.k, args.found + int64_t{query} * args.k);
}

// Whether what was not kept is farther than what was found: scan.h's bound. Both are bits of squared distances.
C3PO_DEVICE bool Proven(const HalfScanArgs& args, uint32_t last_kept, uint32_t last_found) {
  constexpr uint32_t kInfinity = 0x7f800000;
  if (last_kept >= kInfinity) return false;
  const float kept = device::SquareRoot(device::FloatOf(last_kept));
  const float found = device::SquareRoot(device::FloatOf(last_found));
  return device::Multiply(args.scale, kept) > device::Add(found, args.margin);
}

C3PO_KERNEL void C3PO_BOUNDS(kScanThreads, 2) MergeHalves(HalfScanArgs args) {
  const ScanArgs& exact = args.exact;
  const int query = Block();
  BlockLists kept = MergedLists(exact.labels);
  kept.capacity = kMergeEntries / 2;
  BlockLists nearest = kept;  // in the second half
  nearest.entries += kMergeEntries / 2;
  nearest.thresholds += 1;
  nearest.counts += 1;
  float* const own_query = reinterpret_cast<float*>(kept.counts + 4);
  CopyQueries(exact.queries + int64_t{query} * exact.query_stride, exact.query_stride, exact.query_stride, own_query,
              exact.query_stride, 1, 1);
  Clear(nearest);
  MergeLists(kept, args.lists + int64_t{query} * args.blocks * args.kept, args.blocks, args.kept);
  const int count = kept.counts[0];
  for (int base = Warp() * kRowsOfWarp; base < count; base += Warps() * kRowsOfWarp) {
    const int place = base + RowGroup();
    const int row = RowOf(kept.entries[place < count ? place : count - 1]);
    const float* const address[1] = {exact.rows + int64_t{row} * exact.row_stride};
    float squared[1][1];
    device::SquaredDistances<1, 1, 8>(own_query, 0, address, exact.dimension, squared);
    if (RowLane() == 0 && place < count) Offer(nearest, 0, EntryOf(squared[0][0], row));
  }
  Keep(nearest, exact.k);
  WriteFound(nearest, exact.k, exact.found + int64_t{query} * exact.k);
  if (Thread() == 0) {
    const bool all = count < args.kept;
    args.unproven[query] =
        all || Proven(args, SquaredOf(kept.entries[args.kept - 1]), SquaredOf(nearest.entries[exact.k - 1])) ? 0 : 1;
  }
}

Error CheckScan(const ScanArgs& args) {
  if (args.k < 1 || args.k > kScanNeighborsMax) return "scan: k is out of range";
  if (args.row_count < 1 || args.row_count > 1 << 30) return "scan: row count out of range";
  if (args.list_entries != ScanListEntries(args.k)) return "scan: lists of another size";
  if (args.query_count < 1 || args.query_stride < args.segments * args.dimension || args.query_stride > kScanWidthMax) {
    return "scan: queries out of range";
  }
  return nullptr;
}

Error LaunchMerge(const ScanArgs& args, Stream stream) {
  return device::Launch(Merge, device::Grid{args.query_count}, kScanThreads, static_cast<int>(MergeSharedBytes(0)),
                        stream, args);
}

template <class Args>
Error LaunchRows(void (*kernel)(Args), const Args& args, int queries_at_once, int query_count, int blocks, int floats,
                 int kept, Stream stream) {
  const device::Grid grid{blocks, (query_count + queries_at_once - 1) / queries_at_once};
  return device::Launch(kernel, grid, kScanThreads, static_cast<int>(ScanSharedBytes(queries_at_once, floats, kept)),
                        stream, args);
}

}  // namespace

Error LaunchScan(const ScanArgs& args, Stream stream) {
  if (const Error error = CheckScan(args); error != nullptr) return error;
  const auto launch = [&](void (*kernel)(ScanArgs)) {
    return LaunchRows(kernel, args, args.queries_at_once, args.query_count, args.blocks, args.query_stride, args.k,
                      stream);
  };
  if (args.segments > 1 && args.queries_at_once > 1) return "scan: several segments take one query at once";
  Error error = "scan: no such number of queries at once";
  if (args.queries_at_once == 1) error = launch(Scan<1, 4, 3>);
  if (args.queries_at_once == 2) error = launch(Scan<2, 4, 2>);
  if (args.queries_at_once == 4) error = launch(Scan<4, 2, 2>);
  if (args.queries_at_once == 8) error = launch(Scan<8, 2, 1>);
  return error != nullptr ? error : LaunchMerge(args, stream);
}

Error LaunchHalfScan(const HalfScanArgs& args, Stream stream) {
  if (const Error error = CheckScan(args.exact); error != nullptr) return error;
  if (args.exact.k > kHalfNeighborsMax || args.kept <= args.exact.k || args.kept > 2 * kHalfNeighborsMax ||
      args.exact.segments != 1 || args.half_stride % kHalfRowMultiple != 0 ||
      args.list_entries != ScanListEntries(args.kept)) {
    return "float16 scan: arguments out of range";
  }
  const auto launch = [&](void (*kernel)(HalfScanArgs)) {
    return LaunchRows(kernel, args, args.queries_at_once, args.exact.query_count, args.blocks, args.half_stride,
                      args.kept, stream);
  };
  Error error = "float16 scan: no such number of queries at once";
  if (args.queries_at_once == 1) error = launch(HalfScan<1, 4, 3>);
  if (args.queries_at_once == 2) error = launch(HalfScan<2, 4, 2>);
  if (args.queries_at_once == 4) error = launch(HalfScan<4, 2, 2>);
  if (args.queries_at_once == 8) error = launch(HalfScan<8, 2, 1>);
  if (error != nullptr) return error;
  error = device::Launch(MergeHalves, device::Grid{args.exact.query_count}, kScanThreads,
                         static_cast<int>(MergeSharedBytes(args.exact.query_stride)), stream, args);
  return error != nullptr ? error : LaunchScan(args.exact, stream);
}

}  // namespace c3po::cuda
