#ifndef C3PO_INDEX_SEARCH_CUDA_SCAN_H_
#define C3PO_INDEX_SEARCH_CUDA_SCAN_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"

// Exact search of rows in a device's memory: every row is compared with every query, and the k nearest are kept.
//
// Distance. The float32 scan gives, bit for bit,
//   squared(query, row) = sum over segments s, in their order, of
//       SquaredDistance(query + s * P, row + starts[s], dimension)      (index/search/distance.h)
//   with P = dimension rounded up to 4. One segment that starts at 0 is a plain vector. Eight lanes take a row: lane i
//   has the partial sums 4i..4i+3 of the 32, by unfused operations. Exchanges with the lanes xor 2 and xor 4 make the
//   eight sums of SquaredDistance, one with xor 1 their total; both orders of an addition are the same bits. The tail
//   of dimension % 32 is added by each of the eight lanes in turn.
//
// Order. By ascending squared distance, then label: NearestList's. All labels of admitted rows differ, so the k nearest
// are one certain list, whatever order blocks and threads ran in. Distances are at least +0 and never NaN, so their
// bits order as they do.
//
// Two stages: each block keeps the k nearest of its rows in shared memory and writes them to `lists`; a second kernel,
// one block a query, merges the lists. A block reads a row once for up to 8 queries.
namespace c3po::cuda {

// A neighbor as the merge writes it. Beyond the last one: kNoNeighbor in all bits of `squared`.
struct FoundRow {
  int64_t label;
  uint32_t squared;  // the bits of the float
  uint32_t row;
};
inline constexpr uint32_t kNoNeighbor = 0xffffffffu;

inline constexpr int kScanThreads = 256;
inline constexpr int kScanNeighborsMax = 1024;  // k of the float32 scan, at most.
inline constexpr int kHalfNeighborsMax = 256;   // k of the float16 scan, at most.
inline constexpr int kScanWidthMax = 16384;     // Floats of a query, at most: they lie in shared memory.
inline constexpr int kHalfRowMultiple = 64;     // A row of float16 is padded by zeros to a multiple of it.

// All addresses are in device memory. Rows and queries are 16-byte aligned; strides are multiples of 4 floats.
struct ScanArgs {
  const float* rows = nullptr;         // [row_count][row_stride]
  const uint32_t* admitted = nullptr;  // a bit for each row, lowest first: whether it may be found; whole words
  const int64_t* labels = nullptr;     // [row_count]
  int row_count = 0;
  int row_stride = 0;
  const int* segment_starts = nullptr;  // [segments], multiples of 4
  int segments = 1;
  int dimension = 0;               // of a segment
  const float* queries = nullptr;  // [query_count][query_stride]; what pads a segment to 4 floats is ignored
  int query_count = 0;
  int query_stride = 0;            // segments * P
  int k = 0;                       // 1..kScanNeighborsMax
  int blocks = 0;                  // that share the rows; of each group of queries
  int queries_at_once = 0;         // ScanQueriesAtOnce; 1 where there are several segments
  int list_entries = 0;            // ScanListEntries(k)
  uint64_t* lists = nullptr;       // [query_count][blocks][k]: squared's bits << 32 | row; all ones: none
  FoundRow* found = nullptr;       // [query_count][k]
  const uint32_t* only = nullptr;  // [query_count], not 0: this one; null: all. The others' `found` stays as it is.
};

// The float16 scan of whole vectors (one segment): half the bytes, and the same neighbors as the float32 scan.
//
// It compares the query with x' = float16(x) and keeps the `kept` nearest by that, kept > k; of these the float32
// distances are computed and the k nearest taken. Let
//   s(x)  the value computed from x', f(x) = squared(query, x), D' = |query - x'|, D = |query - x| (exact),
//   E     at least |x - x'| of every admitted row, n = padded dimension / 8 + 48, g = n 2^-24 / (1 - n 2^-24),
//   h = dimension * 2^-146.
// Every term is a square, so rounding errors are relative: at most n roundings reach a term on either way (subtraction,
// product, chain of sums, exchange), besides h for what underflows. Hence
//   (1) s <= (1 + g) D'^2 + h      so   D' >= sqrt(s) / sqrt(1 + g) - sqrt(h)
//   (2) D >= D' - E                     (triangle inequality)
//   (3) f >= (1 - g) D^2 - h       so   sqrt(f) >= sqrt(1 - g) D - sqrt(h)
// and with sqrt((1 - g) / (1 + g)) >= 1 - g:   sqrt(f) >= (1 - g) sqrt(s) - E - 2 sqrt(h).
// A row that was not kept has s >= T, the largest s kept. So where
//   (1 - g) sqrt(T) > sqrt(f_k) + E + 2 sqrt(h),   f_k: the k-th float32 distance among those kept,
// every row that was not kept is farther than the k found, and they are the float32 scan's. `scale` is 1 - g and
// `margin` E + 2 sqrt(h), each moved by 2^-20 to the safe side, which covers the five roundings of the comparison
// itself. T is infinite only by overflow, and proves nothing then. Where fewer rows are admitted than kept, all were
// compared. Else the query is marked in `unproven`, and the float32 scan, enqueued behind with `only = unproven`, finds
// its neighbors; where none is marked that scan reads nothing.
struct HalfScanArgs {
  ScanArgs exact;                    // of one segment; `lists` and `only` are the second scan's
  const uint16_t* halves = nullptr;  // float16 [row_count][half_stride]
  int half_stride = 0;               // a multiple of kHalfRowMultiple
  int kept = 0;                      // k < kept <= 2 kHalfNeighborsMax
  int blocks = 0;
  int queries_at_once = 0;
  int list_entries = 0;       // ScanListEntries(kept)
  uint64_t* lists = nullptr;  // [query_count][blocks][kept]
  float scale = 0, margin = 0;
  uint32_t* unproven = nullptr;  // [query_count]: 1 where the bound decided nothing, else 0
};

constexpr int RoundUp(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Entries of a block's list of a query: the nearest, and room for those that arrive between two of its sortings.
constexpr int ScanListEntries(int kept) { return kept <= 128 ? 512 : kept <= 512 ? 1024 : 2048; }

constexpr int64_t ScanSharedBytes(int queries_at_once, int query_floats, int kept) {
  return int64_t{queries_at_once} * (4 * RoundUp(query_floats, 4) + 8 * ScanListEntries(kept) + 8 + 4);
}
inline constexpr int kMergeEntries = 2048;
constexpr int64_t MergeSharedBytes(int query_floats) { return 8 * kMergeEntries + 32 + 4 * RoundUp(query_floats, 4); }

// How many queries a block takes: 8, 4, 2 or 1, as many as there are and shared memory holds; 0: not even one.
constexpr int ScanQueriesAtOnce(int query_count, int query_floats, int kept, int64_t shared_bytes) {
  for (int queries = 8; queries >= 1; queries /= 2) {
    if ((queries == 1 || queries / 2 < query_count) && ScanSharedBytes(queries, query_floats, kept) <= shared_bytes) {
      return queries;
    }
  }
  return 0;
}

// Enqueue both kernels; of LaunchHalfScan all four.
Error LaunchScan(const ScanArgs& args, Stream stream);
Error LaunchHalfScan(const HalfScanArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_INDEX_SEARCH_CUDA_SCAN_H_
