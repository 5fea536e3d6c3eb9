// A block reads one chunk of a row, 16 logits a thread, and the row's last block to end puts the chunks together, so a
// single row of 50,304 logits is read by 13 multiprocessors. A logit and its id are one 64-bit key whose order is the
// one that is wanted, so maxima and sorting have one result whatever the order of threads.
#include "server/compute/cuda/readout.h"

#include <cmath>

#include "index/base/cuda/device.h"
#include "server/compute/cuda/bfloat16_planes.h"
#include "server/compute/cuda/block_reductions.h"

namespace c3po::cuda {
namespace {

using namespace device;  // NOLINT(google-build-using-namespace): the language of kernels.

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
static_assert((kReadoutChunk & (kReadoutChunk - 1)) == 0 && kTopMax < kReadoutChunk, "sorted as powers of two");

// Larger for a larger logit, of equal ones for a lower id; 0 is below all. -0 and 0 are equal.
C3PO_DEVICE uint64_t KeyOf(float logit, int id) {
  const uint32_t bits = BitsOf(Add(logit, 0.0f));
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{ordered} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
C3PO_DEVICE int IdOf(uint64_t key) { return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key)); }

C3PO_DEVICE uint64_t BlockLargest(uint64_t key, uint64_t* scratch) {
  C3PO_UNROLL for (int mask = 16; mask > 0; mask /= 2) {
    const uint64_t other = ShuffleXor(key, mask);
    key = other > key ? other : key;
  }
  if (Lane() == 0) scratch[Warp()] = key;
  SyncBlock();
  for (int w = 0; w < kWarps; ++w) key = scratch[w] > key ? scratch[w] : key;
  SyncBlock();
  return key;
}

// Sorts `size` keys, a power of two, in descending order (bitonic). A collective of the block.
C3PO_DEVICE void SortDescending(uint64_t* keys, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int apart = run / 2; apart > 0; apart /= 2) {
      SyncBlock();
      for (int i = Thread(); i < size / 2; i += kThreads) {
        const int low = i / apart * 2 * apart + i % apart, high = low + apart;
        const bool descends = (low & run) == 0;
        const uint64_t a = keys[low], b = keys[high];
        if (descends ? a < b : a > b) {
          keys[low] = b;
          keys[high] = a;
        }
      }
    }
  }
  SyncBlock();
}

C3PO_DEVICE int PowerOfTwoFrom(int n) {
  int size = 2;
  while (size < n) size *= 2;
  return size;
}

// The row's readout from its chunks'.
C3PO_DEVICE RowReadout JoinChunks(const ReadoutArgs& args, int64_t row, int chunks) {
  const ChunkReadout* const part = args.chunks + row * chunks;
  uint64_t largest = 0;
  RowReadout readout;
  readout.finite = 1;
  for (int c = 0; c < chunks; ++c) {
    largest = part[c].largest > largest ? part[c].largest : largest;
    if (part[c].finite == 0) readout.finite = 0;
  }
  readout.likeliest = IdOf(largest);
  const float* const logits = args.logits + row * args.stride;
  readout.likeliest_logit = logits[readout.likeliest];
  const double top = readout.likeliest_logit;
  double sum = 0;
  for (int c = 0; c < chunks; ++c) sum += part[c].sum * exp(double{logits[IdOf(part[c].largest)]} - top);
  readout.log_normalizer = top + log(sum);
  return readout;
}

// The row's largest from those of its chunks. A collective of the block.
C3PO_DEVICE void JoinCandidates(const ReadoutArgs& args, int64_t row, int chunks, uint64_t* keys) {
  const uint64_t* const from = args.candidates + row * chunks * args.top;
  const int count = chunks * args.top;
  int kept = 0;  // in front, from before
  for (int next = 0; next < count;) {
    const int room = kReadoutChunk - kept, more = count - next < room ? count - next : room;
    const int size = PowerOfTwoFrom(kept + more);
    for (int i = Thread(); i < size - kept; i += kThreads) keys[kept + i] = i < more ? from[next + i] : 0;
    SortDescending(keys, size);
    next += more;
    kept = args.top;
  }
  const float* const logits = args.logits + row * args.stride;
  for (int i = Thread(); i < args.top; i += kThreads) {
    const int64_t at = row * args.top + i;
    args.top_ids[at] = keys[i] != 0 ? IdOf(keys[i]) : -1;
    args.top_logits[at] = keys[i] != 0 ? logits[IdOf(keys[i])] : -__builtin_inff();
  }
}

// grid.x: chunks of a row; grid.y: rows.
C3PO_KERNEL void C3PO_BOUNDS(kThreads, 2) ReadChunk(ReadoutArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  uint64_t* const largest_of_warps = static_cast<uint64_t*>(SharedMemory());
  double* const sums_of_warps = reinterpret_cast<double*>(largest_of_warps + kWarps);
  int* const last = reinterpret_cast<int*>(sums_of_warps + kWarps);
  uint64_t* const keys = reinterpret_cast<uint64_t*>(last + 2);  // [kReadoutChunk], only where the largest are wanted
  const int64_t row = BlockY();
  const float* const logits = args.logits + row * args.stride;
  const int first = Block() * kReadoutChunk;
  constexpr int kOwn = kReadoutChunk / kThreads;
  float own[kOwn];
  bool finite = true;
  uint64_t key = 0;
  C3PO_UNROLL for (int i = 0; i < kOwn; ++i) {
    const int id = first + i * kThreads + Thread();
    own[i] = id < args.vocabulary ? logits[id] : 0.0f;
  }
  C3PO_UNROLL for (int i = 0; i < kOwn; ++i) {
    const int id = first + i * kThreads + Thread();
    const uint64_t mine = id < args.vocabulary ? KeyOf(own[i], id) : 0;
    key = mine > key ? mine : key;
    finite = finite && Subtract(own[i], own[i]) == 0;  // NaN for infinity and NaN.
    if (args.top > 0) keys[i * kThreads + Thread()] = mine;
  }
  key = BlockLargest(key, largest_of_warps);
  const double top = logits[IdOf(key)];
  double sum = 0;
  C3PO_UNROLL for (int i = 0; i < kOwn; ++i) {
    if (first + i * kThreads + Thread() < args.vocabulary) sum += exp(double{own[i]} - top);
  }
  sum = BlockSum(sum, sums_of_warps);
  const uint64_t infinite = BlockLargest(finite ? 0 : 1, largest_of_warps);
  if (args.top > 0) {
    SortDescending(keys, kReadoutChunk);
    uint64_t* const to = args.candidates + (row * Blocks() + Block()) * args.top;
    for (int i = Thread(); i < args.top; i += kThreads) to[i] = keys[i];
  }
  if (Thread() == 0) {
    ChunkReadout chunk;
    chunk.largest = key;
    chunk.sum = sum;
    chunk.finite = infinite == 0 ? 1 : 0;
    args.chunks[row * Blocks() + Block()] = chunk;
  }
  if (!IsLastToArrive(args.arrived + row, Blocks(), last)) return;
  if (args.top > 0) JoinCandidates(args, row, Blocks(), keys);
  if (Thread() != 0) return;
  const RowReadout readout = JoinChunks(args, row, Blocks());
  args.readouts[row] = readout;
  if (row >= args.target_rows) return;
  const int target = args.targets[row];
  args.scores[2 * row] = static_cast<float>(double{logits[target]} - readout.log_normalizer);
  args.scores[2 * row + 1] = target == readout.likeliest ? 1.0f : 0.0f;
}

C3PO_KERNEL void C3PO_BOUNDS(kThreads, 4) ReadTokens(TokenLogitsArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int i = Block() * kThreads + Thread();
  if (i >= args.count) return;
  const TokenOfRow token = args.tokens[i];
  const float logit = args.logits[token.row * args.stride + token.token];
  args.out[i] =
      args.readouts == nullptr ? logit : static_cast<float>(double{logit} - args.readouts[token.row].log_normalizer);
}

// grid.x: columns, a thread each; grid.y: rows.
template <int kPlanes>
C3PO_KERNEL void C3PO_BOUNDS(kThreads, 4) LogitGradient(LogitGradientArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int64_t row = BlockY();
  const int v = Block() * kThreads + Thread();
  if (v >= RoundUp(args.vocabulary, kChunkColumns)) return;
  const int begin = args.target_begin[row], end = args.target_begin[row + 1];
  float own = 0, all = 0;
  for (int t = begin; t < end; ++t) {
    const float d = args.dlogprobs[args.target_index[t]];
    all = Add(all, d);
    if (args.target_tokens[t] == v) own = Add(own, d);
  }
  float gradient = 0;
  if (begin < end && v < args.vocabulary) {
    const double logit = args.logits[row * args.stride + v];
    const float p = Exp(static_cast<float>(logit - args.readouts[row].log_normalizer));
    gradient = FusedMultiplyAdd(-all, p, own);
    if (args.divisor != 1) gradient = Divide(gradient, args.divisor);
  }
  const int position = v / kChunkColumns * kChunkColumns + PositionOf(v % kChunkColumns);
  StorePlanes<kPlanes>(args.dlogits, row, position, gradient);
}

}  // namespace

Error LaunchReadout(const ReadoutArgs& args, Stream stream) {
  if (args.rows == 0) return nullptr;
  const int shared = kWarps * 16 + 8 + (args.top > 0 ? kReadoutChunk * 8 : 0);
  return LaunchEarly(ReadChunk, Grid{ReadoutChunks(args.vocabulary), args.rows}, kThreads, shared, stream, args);
}

Error LaunchTokenLogits(const TokenLogitsArgs& args, Stream stream) {
  if (args.count == 0) return nullptr;
  return LaunchEarly(ReadTokens, Grid{(args.count + kThreads - 1) / kThreads}, kThreads, 0, stream, args);
}

Error LaunchLogitGradient(const LogitGradientArgs& args, Stream stream) {
  if (args.rows == 0) return nullptr;
  const int columns = static_cast<int>(RoundUp(args.vocabulary, kChunkColumns));
  const Grid grid{(columns + kThreads - 1) / kThreads, args.rows};
  return LaunchEarly(args.planes == 1 ? LogitGradient<1> : LogitGradient<3>, grid, kThreads, 0, stream, args);
}

}  // namespace c3po::cuda
