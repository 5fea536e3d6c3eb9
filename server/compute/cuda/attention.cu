// A block holds up to 16 queries of one key-value head (rows of a tile times heads of a group: the M of
// mma.m16n8k16) and goes over splits of the keys; its four warps take a quarter of a split each, 16 keys at a time, and
// put their softmax sums together in shared memory. Keys and values go from global memory straight to the registers
// that the tensor cores read: within 32 entries of a head the order of k is permuted so that a lane's fragments are 16
// neighboring bytes, and values are turned by Transpose8x8. So nothing is staged, and what hides the latency is that a
// warp asks for 16 keys and their values at once: 8 KiB at 128 entries in bfloat16, with two blocks on a multiprocessor
// 64 KiB under way, where 4.3 TB/s over 132 multiprocessors take some 30 KiB.
//
// With one query a block (decode without groups) 15 of 16 rows of the product are idle. It is still bound by bytes: 16
// keys take a warp some 500 issue slots, so a multiprocessor keeps pace with 70 bytes a clock and gets 20.
//
// Whatever lies beyond a row's position has probability exp(-inf) = 0, and a step of 16 keys that are all beyond
// changes nothing (the maximum stays, factors are exp(0) = 1): a row's bits do not depend on its tile's other rows.
//
// Long because it is one kernel, whose every stage is a function of its own.
#include "server/compute/cuda/attention.h"

#include "index/base/cuda/device.h"
#include "server/compute/cuda/bfloat16_planes.h"
#include "server/compute/cuda/block_reductions.h"
#include "server/compute/cuda/split_merge.h"
#include "server/compute/cuda/transform_heads.h"

namespace c3po::cuda {
namespace {

using namespace device;  // NOLINT(google-build-using-namespace): the language of kernels.

constexpr int kWarps = kTransformThreads / 32;
constexpr int kWarpPositions = kSplitPositions / kWarps;
constexpr int kStepPositions = 16;
static_assert(kWarpPositions % kStepPositions == 0);

// Factors of one product that are split into planes: a bfloat16 cache meets queries and probabilities of two planes, a
// float32 one, itself of three, those of three. Pairs whose product lies below the last bits are left out.
constexpr int QueryPlanes(int planes) { return planes == 1 ? 2 : 3; }
constexpr bool IsMultiplied(int planes, int query_plane, int cache_plane) {
  return planes == 1 || query_plane + cache_plane <= 2;
}

// Shared memory. A query's entries lie in rows of `query_stride` bfloat16: 16-byte units to an odd multiple of four, so
// that the eight lanes of a quarter warp (two rows, four units) meet eight different groups of banks.
template <int kKeyChunks, int kValueChunks, int kPlanes>
struct AttentionMemory {
  static constexpr int kQueryUnits = kKeyChunks % 2 == 0 ? kKeyChunks * 4 + 4 : kKeyChunks * 4;
  static constexpr int kQueryStride = kQueryUnits * 8;
  static constexpr int kValueStride = kValueChunks * 32 + 4;
  alignas(16) uint16_t q[QueryPlanes(kPlanes)][kTileSlots][kQueryStride];
  float o[kWarps][kTileSlots][kValueStride];
  float total[kTileSlots][kValueChunks * 32];
  float m[kWarps][kTileSlots], l[kWarps][kTileSlots];
  float weight[kWarps][kTileSlots];  // of a warp's sums in its split
  MergedSplits merged[kTileSlots];   // of the splits so far
  float scratch[kWarps];
  int cache_row[kSplitPositions];  // -1: beyond the tile
  int position[kTileSlots];        // of the slot's row; -1: no row
};

// The queries of a block.
struct Queries {
  int first_row, rows;    // of the step
  int first_head, heads;  // of them, in each row
  int kv_head;
  int length;  // positions that the last row attends to

  C3PO_DEVICE int slots() const { return rows * heads; }
  C3PO_DEVICE int RowOf(int slot) const { return first_row + slot / heads; }
  C3PO_DEVICE int HeadOf(int slot) const { return first_head + slot % heads; }
};

// 8 neighboring entries of a cache row as words of mma fragments, by plane.
template <int kPlanes>
struct Fragment {
  Words4 plane[kPlanes];
};

// 16 bytes on a boundary of 16.
C3PO_DEVICE Words4 WordsAt(const void* at) { return *static_cast<const Words4*>(at); }

template <int kPlanes>
C3PO_DEVICE Fragment<kPlanes> LoadFragment(const void* base, int row, int width, int column) {
  Fragment<kPlanes> result = {};
  if (row < 0 || column >= width) return result;
  const int64_t offset = static_cast<int64_t>(row) * width + column;
  if constexpr (kPlanes == 1) {
    result.plane[0] = WordsAt(static_cast<const uint16_t*>(base) + offset);
  } else {
    const auto* const from = static_cast<const float*>(base) + offset;
    const Words4 part[2] = {WordsAt(from), WordsAt(from + 4)};
    C3PO_UNROLL for (int i = 0; i < 4; ++i) {
      const SplitPair<kPlanes> pair(FloatOf(part[i / 2].x[i % 2 * 2]), FloatOf(part[i / 2].x[i % 2 * 2 + 1]));
      C3PO_UNROLL for (int p = 0; p < kPlanes; ++p) { result.plane[p].x[i] = pair.plane[p]; }
    }
  }
  return result;
}

C3PO_DEVICE float QuadMax(float x) {
  x = Larger(x, ShuffleXor(x, 1));
  return Larger(x, ShuffleXor(x, 2));
}
C3PO_DEVICE float QuadSum(float x) {
  x = Add(x, ShuffleXor(x, 1));
  return Add(x, ShuffleXor(x, 2));
}

// A warp's running softmax over its keys: of rows g and g + 8 of the product, g = lane / 4. o[c][j]: entries
// 32 c + 8 (lane % 4) + 2 j + {0, 1} of both rows.
template <int kValueChunks>
struct WarpSums {
  float o[kValueChunks][4][4];
  float m[2], l[2];
};

// The lane's fragments of 16 rows of keys or values, row[n] its row of each 8, from column 32 c + 8 (lane % 4) on.
template <int kPlanes>
C3PO_DEVICE void LoadChunk(const void* base, const int (&row)[2], int width, int c, Fragment<kPlanes> (&to)[2]) {
  C3PO_UNROLL for (int n = 0; n < 2; ++n) {
    to[n] = LoadFragment<kPlanes>(base, row[n], width, c * 32 + Lane() % 4 * 8);
  }
}

// part[p][n] += queries of plane p times keys n, over 32 entries from 32 c on.
template <int kPlanes, class Memory>
C3PO_DEVICE void AddScores(const Memory& memory, int c, const Fragment<kPlanes> (&keys)[2],
                           float (&part)[QueryPlanes(kPlanes)][2][4]) {
  const int g = Lane() / 4, t = Lane() % 4;
  C3PO_UNROLL for (int p = 0; p < QueryPlanes(kPlanes); ++p) {
    const Words4 low = WordsAt(&memory.q[p][g][c * 32 + t * 8]);
    const Words4 high = WordsAt(&memory.q[p][g + 8][c * 32 + t * 8]);
    C3PO_UNROLL for (int j = 0; j < 2; ++j) {
      const uint32_t a[4] = {low.x[2 * j], high.x[2 * j], low.x[2 * j + 1], high.x[2 * j + 1]};
      C3PO_UNROLL for (int n = 0; n < 2; ++n) {
        C3PO_UNROLL for (int k = 0; k < kPlanes; ++k) {
          if (!IsMultiplied(kPlanes, p, k)) continue;
          const uint32_t b[2] = {keys[n].plane[k].x[2 * j], keys[n].plane[k].x[2 * j + 1]};
          MultiplyAdd16x8x16(part[p][n], a, b);
        }
      }
    }
  }
}

// Scores of 16 keys from position `first` on become probabilities relative to the rows' maxima, and the sums so far are
// brought there. s[n][2 r + e]: of row g + 8 r and key 8 n + 2 (lane % 4) + e; rows see positions up to `limit`.
template <int kValueChunks>
C3PO_DEVICE void AddProbabilities(float scale, int first, const int (&limit)[2], float (&s)[2][4],
                                  WarpSums<kValueChunks>& sums) {
  float kept[2];
  C3PO_UNROLL for (int r = 0; r < 2; ++r) {
    float top = kMinusInfinity;
    C3PO_UNROLL for (int n = 0; n < 2; ++n) {
      C3PO_UNROLL for (int e = 0; e < 2; ++e) {
        float& score = s[n][2 * r + e];
        score = first + n * 8 + Lane() % 4 * 2 + e <= limit[r] ? Multiply(score, scale) : kMinusInfinity;
        top = Larger(top, score);
      }
    }
    top = Larger(sums.m[r], QuadMax(top));
    const float base = top == kMinusInfinity ? 0.0f : top;
    kept[r] = Exp(Subtract(sums.m[r], base));
    sums.m[r] = top;
    float sum = 0;
    C3PO_UNROLL for (int n = 0; n < 2; ++n) {
      C3PO_UNROLL for (int e = 0; e < 2; ++e) {
        float& score = s[n][2 * r + e];
        score = Exp(Subtract(score, base));
        sum = Add(sum, score);
      }
    }
    sums.l[r] = FusedMultiplyAdd(sums.l[r], kept[r], sum);
  }
  // Where no maximum rose all factors are 1.
  if (!Any(kept[0] != 1 || kept[1] != 1)) return;
  C3PO_UNROLL for (int c = 0; c < kValueChunks; ++c) {
    C3PO_UNROLL for (int j = 0; j < 4; ++j) {
      C3PO_UNROLL for (int i = 0; i < 4; ++i) { sums.o[c][j][i] = Multiply(sums.o[c][j][i], kept[i / 2]); }
    }
  }
}

// o += probabilities, by plane, times values of 32 entries.
template <int kPlanes>
C3PO_DEVICE void AddValues(const uint32_t (&p)[QueryPlanes(kPlanes)][4], const Fragment<kPlanes> (&values)[2],
                           float (&o)[4][4]) {
  C3PO_UNROLL for (int j = 0; j < 4; ++j) {
    C3PO_UNROLL for (int k = 0; k < kPlanes; ++k) {
      const uint32_t b[2] = {Transpose8x8(values[0].plane[k].x[j]), Transpose8x8(values[1].plane[k].x[j])};
      C3PO_UNROLL for (int q = 0; q < QueryPlanes(kPlanes); ++q) {
        if (IsMultiplied(kPlanes, q, k)) MultiplyAdd16x8x16(o[j], p[q], b);
      }
    }
  }
}

// 16 keys from position `first` on, of which `row` names those of each lane: keys g and g + 8.
template <int kKeyChunks, int kValueChunks, int kPlanes, class Memory>
C3PO_DEVICE void AttendToKeys(const AttentionArgs& args, const Memory& memory, int first, const int (&row)[2],
                              const int (&limit)[2], WarpSums<kValueChunks>& sums) {
  constexpr int kQueryPlanes = QueryPlanes(kPlanes);
  // All is asked for before the first product, where registers hold it; else 32 entries at a time.
  constexpr bool kKeysAtOnce = kPlanes == 1 && kKeyChunks <= 6, kValuesAtOnce = kPlanes == 1 && kValueChunks <= 4;
  const int key_width = CacheWidth(args.transform.head_dim), value_width = CacheWidth(args.transform.value_dim);
  Fragment<kPlanes> key[kKeysAtOnce ? kKeyChunks : 1][2], value[kValuesAtOnce ? kValueChunks : 1][2];
  if constexpr (kKeysAtOnce) {
    C3PO_UNROLL for (int c = 0; c < kKeyChunks; ++c) { LoadChunk(args.cache.keys, row, key_width, c, key[c]); }
  }
  if constexpr (kValuesAtOnce) {
    C3PO_UNROLL for (int c = 0; c < kValueChunks; ++c) { LoadChunk(args.cache.values, row, value_width, c, value[c]); }
  }
  // A sum for each plane of the queries: no product waits for the one before.
  float part[kQueryPlanes][2][4] = {};
  C3PO_UNROLL for (int c = 0; c < kKeyChunks; ++c) {
    if (c * 32 >= key_width) break;
    if constexpr (!kKeysAtOnce) LoadChunk(args.cache.keys, row, key_width, c, key[0]);
    AddScores<kPlanes>(memory, c, key[kKeysAtOnce ? c : 0], part);
  }
  float s[2][4];
  C3PO_UNROLL for (int n = 0; n < 2; ++n) {
    C3PO_UNROLL for (int i = 0; i < 4; ++i) {
      s[n][i] = part[kQueryPlanes - 1][n][i];
      C3PO_UNROLL for (int p = kQueryPlanes - 2; p >= 0; --p) { s[n][i] = Add(s[n][i], part[p][n][i]); }
    }
  }
  AddProbabilities(args.scale, first, limit, s, sums);
  uint32_t probabilities[kQueryPlanes][4];
  C3PO_UNROLL for (int i = 0; i < 4; ++i) {
    const SplitPair<kQueryPlanes> pair(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]);
    C3PO_UNROLL for (int p = 0; p < kQueryPlanes; ++p) { probabilities[p][i] = pair.plane[p]; }
  }
  C3PO_UNROLL for (int c = 0; c < kValueChunks; ++c) {
    if (c * 32 >= value_width) break;
    if constexpr (!kValuesAtOnce) LoadChunk(args.cache.values, row, value_width, c, value[0]);
    AddValues<kPlanes>(probabilities, value[kValuesAtOnce ? c : 0], sums.o[c]);
  }
}

// Puts the block's queries into shared memory, in planes; where they are not rotated yet, this is done, and the keys
// and values of the only row go into the cache if this block comes to their split. A collective of the block.
template <int kPlanes, class Memory>
C3PO_DEVICE void PrepareQueries(const AttentionArgs& args, const Queries& queries, bool appends, Memory& memory) {
  constexpr int kQueryPlanes = QueryPlanes(kPlanes);
  const HeadTransform& transform = args.transform;
  auto* const words = reinterpret_cast<uint32_t*>(memory.q);
  for (int i = Thread(); i < static_cast<int>(sizeof(memory.q) / 4); i += Threads()) words[i] = 0;
  for (int slot = Thread(); slot < kTileSlots; slot += Threads()) {
    memory.position[slot] = slot < queries.slots() ? args.rows[queries.RowOf(slot)].position : -1;
  }
  SyncBlock();
  const auto put = [&](int slot, int i, float x) {
    const SplitFloat<kQueryPlanes> split(x);
    C3PO_UNROLL for (int p = 0; p < kQueryPlanes; ++p) { memory.q[p][slot][i] = split.plane[p].bits; }
  };
  if (args.q != nullptr) {
    const int dim = transform.head_dim;
    for (int i = Thread(); i < queries.slots() * dim; i += Threads()) {
      const int slot = i / dim;
      const int64_t head = static_cast<int64_t>(queries.RowOf(slot)) * transform.heads + queries.HeadOf(slot);
      put(slot, i % dim, args.q[head * dim + i % dim]);
    }
    return;
  }
  const int row = queries.first_row, position = queries.length - 1;
  const float factor =
      WholeFactor(transform, args.source.q + row * args.source.q_stride, transform.heads, memory.scratch);
  for (int slot = Warp(); slot < queries.slots(); slot += Warps()) {
    const int head = queries.HeadOf(slot);
    TransformHead(transform, RawQuery(transform, args.source, row, head), transform.q_norm, head, factor, position,
                  [&](int i, float x) { put(slot, i, x); });
  }
  if (!appends) return;
  const float key_factor =
      WholeFactor(transform, args.source.k + row * args.source.k_stride, transform.kv_heads, memory.scratch);
  const int cache_row = CacheRowOf(args.sequences[args.rows[row].sequence], args.tables, args.cache.block_positions,
                                   transform.kv_heads, queries.kv_head, position);
  // The last warps: the first have queries.
  if (Warp() == Warps() - 1) {
    AppendKey<kPlanes>(transform, args.source, args.cache, row, queries.kv_head, position, key_factor, cache_row);
  } else if (Warp() == Warps() - 2) {
    AppendValue<kPlanes>(transform, args.source, args.cache, row, queries.kv_head, cache_row);
  }
}

// Puts the warps' sums of a split together: writes partials, or adds to the block's totals. A collective of the block.
template <int kValueChunks, class Memory>
C3PO_DEVICE void MergeWarps(const AttentionArgs& args, const Queries& queries, int split, Memory& memory) {
  const HeadTransform& transform = args.transform;
  const AttentionPartials& partials = args.partials;
  const auto index = [&](int slot) {
    const int64_t head = static_cast<int64_t>(queries.RowOf(slot)) * transform.heads + queries.HeadOf(slot);
    return head * partials.splits_max + split;
  };
  SyncBlock();
  if (Thread() < queries.slots()) {
    const int slot = Thread();
    float m = kMinusInfinity, l = 0;
    for (int w = 0; w < kWarps; ++w) m = Larger(m, memory.m[w][slot]);
    const float base = m == kMinusInfinity ? 0.0f : m;
    for (int w = 0; w < kWarps; ++w) {
      const float weight = Exp(Subtract(memory.m[w][slot], base));
      memory.weight[w][slot] = weight;
      l = FusedMultiplyAdd(weight, memory.l[w][slot], l);
    }
    if (partials.o == nullptr) {
      memory.merged[slot].Add(m, l);
    } else if (split * kSplitPositions <= memory.position[slot]) {
      partials.m[index(slot)] = m;
      partials.l[index(slot)] = l;
    }
  }
  SyncBlock();
  const int dim = transform.value_dim;
  for (int i = Thread(); i < queries.slots() * kValueChunks * 32; i += Threads()) {
    const int slot = i / (kValueChunks * 32), c = i % (kValueChunks * 32);
    if (c >= dim) continue;
    float o = 0;
    for (int w = 0; w < kWarps; ++w) o = FusedMultiplyAdd(memory.weight[w][slot], memory.o[w][slot][c], o);
    if (partials.o == nullptr) {
      memory.total[slot][c] =
          FusedMultiplyAdd(memory.total[slot][c], memory.merged[slot].kept, Multiply(o, memory.merged[slot].added));
    } else if (split * kSplitPositions <= memory.position[slot]) {
      partials.o[index(slot) * dim + c] = o;
    }
  }
}

// The queries of block (x: tile, y: key-value head and part of its group).
C3PO_DEVICE Queries QueriesOf(const AttentionArgs& args, const AttentionTile& tile) {
  const int group = args.transform.heads / args.transform.kv_heads, parts = (group + kTileSlots - 1) / kTileSlots;
  const int part = BlockY() % parts * kTileSlots;
  Queries queries;
  queries.first_row = tile.first_row;
  queries.rows = tile.rows;
  queries.kv_head = BlockY() / parts;
  queries.first_head = queries.kv_head * group + part;
  queries.heads = group - part < kTileSlots ? group - part : kTileSlots;
  queries.length = args.rows[tile.first_row + tile.rows - 1].position + 1;
  return queries;
}

// Where a split's keys and values lie. Known before they are asked for: table and slot are two reads that wait for each
// other, while the queries are prepared or the split before is merged.
template <class Memory>
C3PO_DEVICE void PlaceSplit(const AttentionArgs& args, const Queries& queries, int split, Memory& memory) {
  const AttentionSequence sequence = args.sequences[args.rows[queries.first_row].sequence];
  for (int i = Thread(); i < kSplitPositions; i += Threads()) {
    const int position = split * kSplitPositions + i;
    memory.cache_row[i] = position < queries.length ? CacheRowOf(sequence, args.tables, args.cache.block_positions,
                                                                 args.transform.kv_heads, queries.kv_head, position)
                                                    : -1;
  }
}

// The warps' sums over a split, to shared memory. A collective of the block.
template <int kKeyChunks, int kValueChunks, int kPlanes, class Memory>
C3PO_DEVICE void AttendToSplit(const AttentionArgs& args, const Queries& queries, int split, Memory& memory) {
  const int g = Lane() / 4, t = Lane() % 4, begin = split * kSplitPositions;
  SyncBlock();
  WarpSums<kValueChunks> sums;
  C3PO_UNROLL for (int c = 0; c < kValueChunks; ++c) {
    C3PO_UNROLL for (int j = 0; j < 4; ++j) {
      C3PO_UNROLL for (int i = 0; i < 4; ++i) { sums.o[c][j][i] = 0; }
    }
  }
  C3PO_UNROLL for (int r = 0; r < 2; ++r) {
    sums.m[r] = kMinusInfinity;
    sums.l[r] = 0;
  }
  const int limit[2] = {memory.position[g], memory.position[g + 8]};
  int end = (Warp() + 1) * kWarpPositions;
  if (end > queries.length - begin) end = queries.length - begin;
  for (int key = Warp() * kWarpPositions; key < end; key += kStepPositions) {
    const int row[2] = {memory.cache_row[key + g], memory.cache_row[key + 8 + g]};
    AttendToKeys<kKeyChunks, kValueChunks, kPlanes>(args, memory, begin + key, row, limit, sums);
  }
  C3PO_UNROLL for (int r = 0; r < 2; ++r) {
    const float l = QuadSum(sums.l[r]);
    if (t == 0) {
      memory.m[Warp()][g + 8 * r] = sums.m[r];
      memory.l[Warp()][g + 8 * r] = l;
    }
    C3PO_UNROLL for (int c = 0; c < kValueChunks; ++c) {
      C3PO_UNROLL for (int j = 0; j < 4; ++j) {
        float* const o = &memory.o[Warp()][g + 8 * r][c * 32 + t * 8 + j * 2];
        o[0] = sums.o[c][j][2 * r];
        o[1] = sums.o[c][j][2 * r + 1];
      }
    }
  }
}

// The context of the block's queries from its totals, with zeros behind the last head's. A collective of the block.
template <int kPlanes, class Memory>
C3PO_DEVICE void StoreContext(const AttentionArgs& args, const Queries& queries, const Memory& memory) {
  const int dim = args.transform.value_dim, heads = args.transform.heads;
  SyncBlock();
  for (int i = Thread(); i < queries.slots() * dim; i += Threads()) {
    const int slot = i / dim, c = i % dim;
    StorePlanes<kPlanes>(args.context, queries.RowOf(slot), queries.HeadOf(slot) * dim + c,
                         Divide(memory.total[slot][c], memory.merged[slot].l));
  }
  if (queries.first_head + queries.heads < heads) return;
  for (int r = 0; r < queries.rows; ++r) {
    for (int c = heads * dim + Thread(); c < RoundUp(heads * dim, kChunkColumns); c += Threads()) {
      StorePlanes<kPlanes>(args.context, queries.first_row + r, c, 0);
    }
  }
}

template <int kKeyChunks, int kValueChunks, int kPlanes>
C3PO_KERNEL void C3PO_BOUNDS(kTransformThreads, 2) Attend(AttentionArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  using Memory = AttentionMemory<kKeyChunks, kValueChunks, kPlanes>;
  Memory& memory = *static_cast<Memory*>(SharedMemory());
  const AttentionTile tile = args.tiles != nullptr ? args.tiles[Block()] : AttentionTile{Block(), 1};
  if (tile.rows <= 0 || args.rows[tile.first_row].sequence < 0) return;
  const Queries queries = QueriesOf(args, tile);
  const int splits = SplitsOf(queries.length - 1);
  if (BlockZ() >= splits) return;
  PlaceSplit(args, queries, BlockZ(), memory);
  PrepareQueries<kPlanes>(args, queries, (splits - 1) % args.workers == BlockZ(), memory);
  const bool merges = args.partials.o == nullptr;
  if (merges) {
    for (int i = Thread(); i < kTileSlots * kValueChunks * 32; i += Threads()) (&memory.total[0][0])[i] = 0;
    if (Thread() < kTileSlots) memory.merged[Thread()] = MergedSplits();
  }
  for (int split = BlockZ(); split < splits; split += args.workers) {
    AttendToSplit<kKeyChunks, kValueChunks, kPlanes>(args, queries, split, memory);
    MergeWarps<kValueChunks>(args, queries, split, memory);
    PlaceSplit(args, queries, split + args.workers, memory);  // Its first barrier is behind both.
  }
  if (merges) StoreContext<kPlanes>(args, queries, memory);
}

template <int kKeyChunks, int kValueChunks>
Error LaunchAttend(const AttentionArgs& args, Stream stream) {
  const int group = args.transform.heads / args.transform.kv_heads;
  const Grid grid{args.tile_count, args.transform.kv_heads * ((group + kTileSlots - 1) / kTileSlots), args.workers};
  if (args.planes == 1) {
    return LaunchEarly(Attend<kKeyChunks, kValueChunks, 1>, grid, kTransformThreads,
                       sizeof(AttentionMemory<kKeyChunks, kValueChunks, 1>), stream, args);
  }
  return LaunchEarly(Attend<kKeyChunks, kValueChunks, 3>, grid, kTransformThreads,
                     sizeof(AttentionMemory<kKeyChunks, kValueChunks, 3>), stream, args);
}

}  // namespace

Error LaunchAttention(const AttentionArgs& args, Stream stream) {
  if (args.tile_count == 0) return nullptr;
  const int keys = args.transform.head_dim, values = args.transform.value_dim;
  if (keys <= 64 && values <= 64) return LaunchAttend<2, 2>(args, stream);
  if (keys <= 128 && values <= 128) return LaunchAttend<4, 4>(args, stream);
  if (keys <= 192 && values <= 128) return LaunchAttend<6, 4>(args, stream);
  if (keys <= 256 && values <= 256) return LaunchAttend<8, 8>(args, stream);
  return "attention heads of more than 256 entries";
}

}  // namespace c3po::cuda
