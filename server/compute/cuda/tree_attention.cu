// One block a row and head. Its eight warps take every eighth column, four of them at a time so that four rows are on
// their way; a lane holds 4 neighboring entries of each 128. Scores lie in global memory, where the way back wants the
// probabilities anyway, so no length of a prefix is too long for shared memory.
//
// An objective has some 3 to 36 rows with prefixes of some hundred positions: 16 heads make 48 to 576 blocks that read
// 50 KiB each, mostly from L2, a few microseconds in all. What tensor cores would save here is nothing.
#include "server/compute/cuda/tree_attention.h"

#include <cmath>

#include "index/base/cuda/device.h"
#include "server/compute/cuda/bfloat16_planes.h"
#include "server/compute/cuda/block_reductions.h"
#include "server/compute/cuda/transform_heads.h"

namespace c3po::cuda {
namespace {

using namespace device;  // NOLINT(google-build-using-namespace): the language of kernels.

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kColumnsAtOnce = 4;
constexpr int kParts = 2;  // of 128 entries, of which a lane holds 4
constexpr int kPartEntries = 128;

// A lane's entries of one row.
struct LaneEntries {
  float x[kParts][4];
};

C3PO_DEVICE int ColumnOfPart(int part) { return part * kPartEntries + Lane() * 4; }

C3PO_DEVICE void Clear(LaneEntries& entries) {
  C3PO_UNROLL for (int p = 0; p < kParts; ++p) {
    C3PO_UNROLL for (int i = 0; i < 4; ++i) { entries.x[p][i] = 0; }
  }
}

// Packed float32 of `dim` entries; 0 behind.
C3PO_DEVICE void LoadFloats(const float* row, int dim, LaneEntries& entries) {
  Clear(entries);
  C3PO_UNROLL for (int p = 0; p < kParts; ++p) {
    const int c = ColumnOfPart(p);
    if (c >= dim) continue;
    if (dim % 4 == 0) {
      const Words4 words = *static_cast<const Words4*>(static_cast<const void*>(row + c));
      C3PO_UNROLL for (int i = 0; i < 4; ++i) { entries.x[p][i] = FloatOf(words.x[i]); }
    } else {
      C3PO_UNROLL for (int i = 0; i < 4; ++i) { entries.x[p][i] = c + i < dim ? row[c + i] : 0.0f; }
    }
  }
}

// 8 bytes on a boundary of 8.
struct alignas(8) Words2 {
  uint32_t x[2];
};

C3PO_DEVICE void LoadBFloat16(const uint16_t* row, int width, LaneEntries& entries) {
  Clear(entries);
  C3PO_UNROLL for (int p = 0; p < kParts; ++p) {
    const int c = ColumnOfPart(p);
    if (c >= width) continue;
    const Words2 words = *static_cast<const Words2*>(static_cast<const void*>(row + c));
    C3PO_UNROLL for (int i = 0; i < 2; ++i) {
      entries.x[p][2 * i] = FloatOf(words.x[i] << 16);
      entries.x[p][2 * i + 1] = FloatOf(words.x[i] & 0xffff0000u);
    }
  }
}

// The columns of a row at one key-value head: of keys, or of values.
struct TreeColumns {
  const void* const* blocks;
  int block_positions, kv_head, dim;
  bool bfloat16;
  const float* own;  // row 0 of the matrix, at the head
  int64_t own_stride;
  const int32_t* ancestors;
  int prefix, count;  // columns, of all

  C3PO_DEVICE void Load(int j, LaneEntries& entries) const {
    if (j >= prefix) return LoadFloats(own + ancestors[j - prefix] * own_stride, dim, entries);
    const int width = CacheWidth(dim);
    const int64_t at = static_cast<int64_t>(kv_head * block_positions + j % block_positions) * width;
    const void* const block = blocks[j / block_positions];
    if (bfloat16) return LoadBFloat16(static_cast<const uint16_t*>(block) + at, width, entries);
    LoadFloats(static_cast<const float*>(block) + at, width, entries);
  }
};

C3PO_DEVICE TreeColumns ColumnsOf(const TreeAttentionArgs& args, int row, int head, bool values) {
  const TreeTables& tree = args.tree;
  const int s = tree.row_case[row], g = head / (args.heads / args.kv_heads);
  const int dim = values ? args.value_dim : args.head_dim, begin = tree.ancestor_begin[row];
  TreeColumns columns;
  columns.blocks = (values ? args.prefix.values : args.prefix.keys) + tree.block_begin[s];
  columns.block_positions = args.prefix.block_positions;
  columns.kv_head = g;
  columns.dim = dim;
  columns.bfloat16 = args.prefix.bfloat16 != 0;
  columns.own = (values ? args.v : args.k) + static_cast<int64_t>(g) * dim;
  columns.own_stride = static_cast<int64_t>(args.kv_heads) * dim;
  columns.ancestors = tree.ancestors + begin;
  columns.prefix = tree.prefix_lengths[s];
  columns.count = columns.prefix + tree.ancestor_begin[row + 1] - begin;
  return columns;
}

// to[j] = <x, column j>. A collective of each warp.
C3PO_DEVICE void DotColumns(const TreeColumns& columns, const LaneEntries& x, float* to) {
  for (int first = Warp() * kColumnsAtOnce; first < columns.count; first += kWarps * kColumnsAtOnce) {
    LaneEntries entries[kColumnsAtOnce];
    C3PO_UNROLL for (int i = 0; i < kColumnsAtOnce; ++i) {
      columns.Load(first + i < columns.count ? first + i : columns.count - 1, entries[i]);
    }
    C3PO_UNROLL for (int i = 0; i < kColumnsAtOnce; ++i) {
      float dot = 0;
      C3PO_UNROLL for (int p = 0; p < kParts; ++p) {
        C3PO_UNROLL for (int e = 0; e < 4; ++e) { dot = FusedMultiplyAdd(x.x[p][e], entries[i].x[p][e], dot); }
      }
      dot = WarpSum(dot);
      if (Lane() == 0 && first + i < columns.count) to[first + i] = dot;
    }
  }
}

// sum_j factor[j] column j, by warps, then over them: out(c, sum) for each entry. `parts`: shared, [kWarps][dim]. A
// collective of the block.
template <class Out>
C3PO_DEVICE void SumColumns(const TreeColumns& columns, const float* factor, float* parts, const Out& out) {
  LaneEntries sum;
  Clear(sum);
  for (int first = Warp() * kColumnsAtOnce; first < columns.count; first += kWarps * kColumnsAtOnce) {
    LaneEntries entries[kColumnsAtOnce];
    float f[kColumnsAtOnce];
    C3PO_UNROLL for (int i = 0; i < kColumnsAtOnce; ++i) {
      const bool there = first + i < columns.count;
      columns.Load(there ? first + i : columns.count - 1, entries[i]);
      f[i] = there ? factor[first + i] : 0.0f;
    }
    C3PO_UNROLL for (int i = 0; i < kColumnsAtOnce; ++i) {
      if (first + i >= columns.count) break;
      C3PO_UNROLL for (int p = 0; p < kParts; ++p) {
        C3PO_UNROLL for (int e = 0; e < 4; ++e) {
          sum.x[p][e] = FusedMultiplyAdd(f[i], entries[i].x[p][e], sum.x[p][e]);
        }
      }
    }
  }
  C3PO_UNROLL for (int p = 0; p < kParts; ++p) {
    C3PO_UNROLL for (int e = 0; e < 4; ++e) {
      const int c = ColumnOfPart(p) + e;
      if (c < columns.dim) parts[Warp() * columns.dim + c] = sum.x[p][e];
    }
  }
  SyncBlock();
  for (int c = Thread(); c < columns.dim; c += Threads()) {
    float total = parts[c];
    for (int w = 1; w < kWarps; ++w) total = Add(total, parts[w * columns.dim + c]);
    out(c, total);
  }
  SyncBlock();
}

// Of row r and head h in what lies column by column.
C3PO_DEVICE int64_t ColumnsBegin(const TreeAttentionArgs& args, int row, int head, int count) {
  return args.tree.column_begin[row] * args.heads + static_cast<int64_t>(head) * count;
}

// Shared memory: floats [kWarps][max(head_dim, value_dim)], then [kWarps] doubles.
int SharedBytesOf(const TreeAttentionArgs& args) {
  const int dim = args.head_dim > args.value_dim ? args.head_dim : args.value_dim;
  return kWarps * dim * 4 + kWarps * 8;
}

// grid.x: rows; grid.y: heads.
template <int kPlanes>
C3PO_KERNEL void C3PO_BOUNDS(kThreads, 2) TreeForward(TreeAttentionArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int row = Block(), head = BlockY();
  double* const scratch = static_cast<double*>(SharedMemory());
  float* const parts = reinterpret_cast<float*>(scratch + kWarps);
  float* const float_scratch = reinterpret_cast<float*>(scratch);
  const TreeColumns keys = ColumnsOf(args, row, head, false), values = ColumnsOf(args, row, head, true);
  const int64_t index = static_cast<int64_t>(row) * args.heads + head;
  LaneEntries query;
  LoadFloats(args.q + index * args.head_dim, args.head_dim, query);
  float* const p = args.probabilities + ColumnsBegin(args, row, head, keys.count);
  DotColumns(keys, query, p);
  SyncBlock();
  float top = kMinusInfinity;
  for (int j = Thread(); j < keys.count; j += Threads()) top = Larger(top, p[j]);
  top = BlockMax(top, float_scratch);
  float sum = 0;
  for (int j = Thread(); j < keys.count; j += Threads()) {
    p[j] = Exp(Multiply(args.scale, Subtract(p[j], top)));
    sum = Add(sum, p[j]);
  }
  const float inverse = Divide(1.0f, BlockSum(sum, float_scratch));
  for (int j = Thread(); j < keys.count; j += Threads()) p[j] = Multiply(p[j], inverse);
  SyncBlock();
  SumColumns(values, p, parts, [&](int c, float total) {
    StorePlanes<kPlanes>(args.context, row, static_cast<int64_t>(head) * args.value_dim + c, total);
  });
  if (head != args.heads - 1) return;
  const int width = args.heads * args.value_dim;
  for (int c = width + Thread(); c < RoundUp(width, kChunkColumns); c += Threads()) {
    StorePlanes<kPlanes>(args.context, row, c, 0);
  }
}

// dq, and the scores' gradients that dk takes. grid as TreeForward's.
C3PO_KERNEL void C3PO_BOUNDS(kThreads, 2) TreeQueryBackward(TreeBackwardArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const TreeAttentionArgs& forward = args.forward;
  const int row = Block(), head = BlockY();
  double* const scratch = static_cast<double*>(SharedMemory());
  float* const parts = reinterpret_cast<float*>(scratch + kWarps);
  const TreeColumns keys = ColumnsOf(forward, row, head, false), values = ColumnsOf(forward, row, head, true);
  const int64_t index = static_cast<int64_t>(row) * forward.heads + head;
  const int64_t begin = ColumnsBegin(forward, row, head, keys.count);
  const float* const p = forward.probabilities + begin;
  float* const ds = args.dscores + begin;
  LaneEntries dcontext;
  LoadFloats(args.dcontext + index * forward.value_dim, forward.value_dim, dcontext);
  DotColumns(values, dcontext, ds);
  SyncBlock();
  double mean = 0;
  for (int j = Thread(); j < keys.count; j += Threads()) mean += double{ds[j]} * p[j];
  mean = BlockSum(mean, scratch);
  for (int j = Thread(); j < keys.count; j += Threads())
    ds[j] = static_cast<float>(p[j] * (ds[j] - mean) * forward.scale);
  SyncBlock();
  float* const dq = args.dq + index * forward.head_dim;
  SumColumns(keys, ds, parts, [&](int c, float total) { dq[c] = total; });
}

// dk and dv of a row, a thread an entry: over the rows that attend to it, ascending, and over their heads. grid.y:
// key-value heads.
C3PO_KERNEL void C3PO_BOUNDS(kThreads, 4) TreeKeyBackward(TreeBackwardArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const TreeAttentionArgs& forward = args.forward;
  const TreeTables& tree = forward.tree;
  const int row = Block(), g = BlockY(), group = forward.heads / forward.kv_heads;
  const int dim = forward.head_dim, value_dim = forward.value_dim;
  const int prefix = tree.prefix_lengths[tree.row_case[row]];
  const int64_t index = static_cast<int64_t>(row) * forward.kv_heads + g;
  for (int c = Thread(); c < dim + value_dim; c += Threads()) {
    const bool of_key = c < dim;
    float sum = 0;
    for (int i = tree.descendant_begin[row]; i < tree.descendant_begin[row + 1]; ++i) {
      const TreeDescendant other = tree.descendants[i];
      const int count = prefix + tree.ancestor_begin[other.row + 1] - tree.ancestor_begin[other.row];
      for (int h = g * group; h < (g + 1) * group; ++h) {
        const int64_t column = ColumnsBegin(forward, other.row, h, count) + prefix + other.place;
        const int64_t at = static_cast<int64_t>(other.row) * forward.heads + h;
        sum = of_key ? FusedMultiplyAdd(args.dscores[column], forward.q[at * dim + c], sum)
                     : FusedMultiplyAdd(forward.probabilities[column], args.dcontext[at * value_dim + c - dim], sum);
      }
    }
    (of_key ? args.dk[index * dim + c] : args.dv[index * value_dim + c - dim]) = sum;
  }
}

// The gradient of entry i of a head before its rotation.
C3PO_DEVICE float RotatedBack(const HeadTransform& t, const float* dy, int i, int position) {
  const int half = t.rope_dim / 2, plain = t.head_dim - t.rope_dim;
  if (i < plain) return dy[i];
  const bool first = i - plain < half;
  const int j = first ? i - plain : i - plain - half;
  const int64_t at = static_cast<int64_t>(position) * half + j;
  const float a = dy[plain + j], b = dy[plain + half + j];
  return first ? FusedMultiplyAdd(b, t.sin[at], Multiply(a, t.cos[at]))
               : FusedMultiplyAdd(-a, t.sin[at], Multiply(b, t.cos[at]));
}

// No gradient goes through what was clipped.
C3PO_DEVICE float ClippedBack(float dy, float y, float clip) { return y <= clip && y >= -clip ? dy : 0.0f; }

// Queries or keys of one row.
struct HeadsOfRow {
  const float* x;       // packed heads
  const float* weight;  // q_norm or k_norm
  const float* dy;
  float* dx;
  int heads;
};

// A collective of the block.
C3PO_DEVICE void NormedHeadsBackward(const HeadTransform& t, const HeadsOfRow& row, int position, float* scratch) {
  const int dim = t.head_dim;
  const bool whole = t.norm == HeadNorm::kWhole, normed = t.norm != HeadNorm::kNone;
  // dJ/d of the normed entry, times the norm's weight; `squares` as in the forward pass.
  const auto gradient = [&](int head, int i, float factor) {
    const int e = head * dim + i;
    const float weight = normed ? row.weight[whole ? e : i] : 1.0f;
    const float y = normed ? Multiply(Multiply(row.x[e], factor), weight) : row.x[e];
    return Multiply(ClippedBack(RotatedBack(t, row.dy + head * dim, i, position), y, t.clip), weight);
  };
  // dx from the sums over n entries.
  const auto back = [&](float g, float x, double squares, double along, int n) {
    const double rstd = 1 / sqrt(squares / n + double{t.eps});
    return static_cast<float>(rstd * g - along / n * rstd * rstd * rstd * x);
  };
  if (whole) {
    const int n = row.heads * dim;
    double squares = 0, along = 0;
    const float factor = InverseRmsOfBlock(row.x, n, t.eps, scratch);
    double* const sums = reinterpret_cast<double*>(scratch);
    for (int e = Thread(); e < n; e += Threads()) {
      squares += double{row.x[e]} * row.x[e];
      along += double{gradient(e / dim, e % dim, factor)} * row.x[e];
    }
    squares = BlockSum(squares, sums);
    along = BlockSum(along, sums);
    for (int e = Thread(); e < n; e += Threads()) {
      row.dx[e] = back(gradient(e / dim, e % dim, factor), row.x[e], squares, along, n);
    }
    return;
  }
  for (int head = Warp(); head < row.heads; head += Warps()) {
    const float* const x = row.x + head * dim;
    double squares = 0, along = 0;
    float factor = 1;
    if (normed) {
      factor = InverseRmsOfWarp(x, dim, t.eps);
      for (int i = Lane(); i < dim; i += 32) {
        squares += double{x[i]} * x[i];
        along += double{gradient(head, i, factor)} * x[i];
      }
      squares = WarpSum(squares);
      along = WarpSum(along);
    }
    for (int i = Lane(); i < dim; i += 32) {
      const float g = gradient(head, i, factor);
      row.dx[head * dim + i] = normed ? back(g, x[i], squares, along, dim) : g;
    }
  }
}

C3PO_KERNEL void C3PO_BOUNDS(kTransformThreads, 4) TransformBackward(HeadsBackwardArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const HeadTransform& t = args.transform;
  const HeadSource& source = args.source;
  float* const scratch = static_cast<float*>(SharedMemory());
  const int64_t r = Block();
  const int position = args.rows[r].position, dim = t.head_dim, kv_heads = t.kv_heads;
  const float* const dq = args.dq + r * t.heads * dim;
  const float* const dk = args.dk + r * kv_heads * dim;
  const float* const dv = args.dv + r * kv_heads * t.value_dim;
  NormedHeadsBackward(t, {source.q + r * source.q_stride, t.q_norm, dq, args.gradient.q + r * source.q_stride, t.heads},
                      position, scratch);
  float* const to_key = args.gradient.k + r * source.k_stride;
  if (source.shared_key == nullptr) {
    NormedHeadsBackward(t, {source.k + r * source.k_stride, t.k_norm, dk, to_key, kv_heads}, position, scratch);
  } else {
    const int plain = dim - t.rope_dim;
    for (int i = Thread(); i < kv_heads * plain; i += Threads()) {
      to_key[static_cast<int64_t>(i / plain) * source.k_head_stride + i % plain] = dk[i / plain * dim + i % plain];
    }
    // The sum over heads first, then back through the rotation that all share.
    float* const sums = scratch + 2 * Warps();  // [head_dim], of which the tail is filled
    for (int i = plain + Thread(); i < dim; i += Threads()) {
      float sum = 0;
      for (int g = 0; g < kv_heads; ++g) sum = Add(sum, dk[g * dim + i]);
      sums[i] = sum;
    }
    SyncBlock();
    for (int i = plain + Thread(); i < dim; i += Threads()) {
      args.gradient.shared_key[r * source.shared_stride + i - plain] = RotatedBack(t, sums, i, position);
    }
  }
  for (int i = Thread(); i < kv_heads * t.value_dim; i += Threads()) {
    const int g = i / t.value_dim, c = i % t.value_dim;
    const float x = RawValue(source, r, g)[c];
    args.gradient.v[r * source.v_stride + static_cast<int64_t>(g) * source.v_head_stride + c] =
        ClippedBack(dv[i], x, t.clip);
  }
}

// grid.x: copies.
C3PO_KERNEL void C3PO_BOUNDS(kThreads, 4) CopyBlocks(BlockCopiesArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const BlockCopy copy = args.copies[Block()];
  const auto* const from = static_cast<const Words4*>(copy.from);
  auto* const to = static_cast<Words4*>(copy.to);
  for (int64_t i = Thread(); i < args.bytes / 16; i += Threads()) to[i] = from[i];
}

}  // namespace

Error LaunchTreeAttention(const TreeAttentionArgs& args, Stream stream) {
  if (args.tree.rows == 0) return nullptr;
  return LaunchEarly(args.planes == 1 ? TreeForward<1> : TreeForward<3>, Grid{args.tree.rows, args.heads}, kThreads,
                     SharedBytesOf(args), stream, args);
}

Error LaunchTreeBackward(const TreeBackwardArgs& args, Stream stream) {
  const TreeAttentionArgs& forward = args.forward;
  if (forward.tree.rows == 0) return nullptr;
  const Error error = LaunchEarly(TreeQueryBackward, Grid{forward.tree.rows, forward.heads}, kThreads,
                                  SharedBytesOf(forward), stream, args);
  if (error != nullptr) return error;
  return LaunchEarly(TreeKeyBackward, Grid{forward.tree.rows, forward.kv_heads}, kThreads, 0, stream, args);
}

Error LaunchHeadsBackward(const HeadsBackwardArgs& args, Stream stream) {
  if (args.row_count == 0) return nullptr;
  const int shared = kTransformThreads / 32 * 8 + args.transform.head_dim * 4;
  return LaunchEarly(TransformBackward, Grid{args.row_count}, kTransformThreads, shared, stream, args);
}

Error LaunchBlockCopies(const BlockCopiesArgs& args, Stream stream) {
  if (args.count == 0) return nullptr;
  return LaunchEarly(CopyBlocks, Grid{args.count}, kThreads, 0, stream, args);
}

}  // namespace c3po::cuda
