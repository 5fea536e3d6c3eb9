#include "index/base/cuda/device.h"
#include "tests/host_cuda/primitive_kernels.h"

namespace c3po::host_cuda {

using namespace device;  // NOLINT: the language of kernels

namespace {

C3PO_KERNEL void Places(PlaceArgs args) {
  const int places[kPlaces] = {Thread(), Threads(), Lane(),    Warp(),   Warps(),  Block(),
                               Blocks(), BlockY(),  BlocksY(), BlockZ(), BlocksZ()};
  const int block = (BlockZ() * BlocksY() + BlockY()) * Blocks() + Block();
  for (int i = 0; i < kPlaces; ++i) args.out[(block * Threads() + Thread()) * kPlaces + i] = places[i];
}

template <class T>
C3PO_DEVICE void ShuffleAll(T value, int from, int by, T* out) {
  const T shuffled[kShuffles] = {Shuffle(value, from), ShuffleXor(value, by), ShuffleDown(value, by),
                                 ShuffleUp(value, by)};
  for (int i = 0; i < kShuffles; ++i) out[32 * i + Lane()] = shuffled[i];
}

C3PO_KERNEL void Shuffles(ShuffleArgs args) {
  ShuffleAll(args.value[Lane()], args.from[Lane()], args.by, args.out);
  ShuffleAll(args.wide[Lane()], args.from[Lane()], args.by, args.wide_out);
}

C3PO_KERNEL void Votes(VoteArgs args) {
  const bool vote = (args.votes >> Lane() & 1) != 0;
  args.out[Lane()] = Ballot(vote);
  args.out[32 + Lane()] = Any(vote);
  args.out[64 + Lane()] = All(vote);
}

C3PO_KERNEL void Matrices(MatrixArgs args) {
  auto* const rows = static_cast<Words4*>(SharedMemory());
  rows[Lane()] = LoadOnce(reinterpret_cast<const Words4*>(args.rows) + Lane());
  SyncWarp();
  uint32_t a[4], b[2], loaded[4];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = args.a[4 * Lane() + i];
  for (int i = 0; i < 2; ++i) b[i] = args.b[2 * Lane() + i];
  for (int i = 0; i < 4; ++i) d[i] = args.d[4 * Lane() + i];
  MultiplyAdd16x8x16(d, a, b);
  for (int i = 0; i < 4; ++i) args.d[4 * Lane() + i] = d[i];
  args.transposed[Lane()] = Transpose8x8(args.tile[Lane()]);
  LoadMatrices4(loaded, &rows[Lane()]);
  for (int i = 0; i < 4; ++i) args.loaded[4 * Lane() + i] = loaded[i];
}

C3PO_KERNEL void Copies(CopyArgs args) {
  auto* const shared = static_cast<Words4*>(SharedMemory());
  const auto* const in = reinterpret_cast<const Words4*>(args.in);
  auto* const out = reinterpret_cast<Words4*>(args.out);
  CopyAsync16(shared + Thread(), in + Thread());
  CommitCopies();
  CopyAsyncOrZero16(shared + 64 + Thread(), in + 64 + Thread(), Thread() % 2 == 0);
  CommitCopies();
  WaitCopies<1>();
  SyncBlock();
  out[63 - Thread()] = shared[63 - Thread()];
  WaitCopies<0>();
  SyncBlock();
  out[64 + 63 - Thread()] = shared[64 + 63 - Thread()];
}

struct Words2 {
  uint32_t x[2];
};

C3PO_KERNEL void SmallCopies(SmallCopyArgs args) {
  auto* const pairs = static_cast<Words2*>(SharedMemory());
  auto* const words = reinterpret_cast<uint32_t*>(pairs + 64);
  const bool valid = Thread() % 3 != 0;
  CopyAsyncOrZero<8>(pairs + Thread(), reinterpret_cast<const Words2*>(args.in) + Thread(), valid);
  CopyAsyncOrZero<4>(words + Thread(), args.in + 128 + Thread(), valid);
  CommitCopies();
  WaitCopies<0>();
  SyncBlock();
  reinterpret_cast<Words2*>(args.out)[63 - Thread()] = pairs[63 - Thread()];
  args.out[128 + 63 - Thread()] = words[63 - Thread()];
}

C3PO_KERNEL void Pairs(PairArgs args) {
  const int i = Block() * Threads() + Thread();
  if (i < args.n) args.differences[i] = SubtractBFloat16Pairs(args.a[i], args.b[i]);
}

C3PO_KERNEL void Atomics(AtomicArgs args) {
  const int t = Block() * Threads() + Thread();
  const auto word = static_cast<uint32_t>(t);
  const uint64_t wide = uint64_t{word} << 32;
  AtomicAdd(args.signed_words, t);
  AtomicMax(args.signed_words + 1, t - 48);
  AtomicMin(args.signed_words + 2, t - 48);
  AtomicExchange(args.signed_words + 3, t);
  AtomicAdd(args.words, word);
  AtomicMax(args.words + 1, word);
  AtomicMin(args.words + 2, word);
  AtomicOr(args.words + 3, 1u << (t % 32));
  AtomicAnd(args.words + 4, ~(1u << (t % 32)));
  AtomicExchange(args.words + 5, word);
  if (AtomicCompareExchange(args.words + 6, 0u, 1u) == 0) AtomicAdd(args.words + 7, 1u);
  AtomicAdd(args.wide_words, wide);
  AtomicMax(args.wide_words + 1, wide);
  AtomicMin(args.wide_words + 2, wide);
  AtomicExchange(args.wide_words + 3, wide);
  if (AtomicCompareExchange(args.wide_words + 4, uint64_t{0}, uint64_t{1} << 40) == 0) AtomicAdd(args.words + 7, 1u);
  ThreadFence();
  args.old[t] = AtomicAdd(args.words + 8, 1u);
}

C3PO_KERNEL void Arithmetic(ArithmeticArgs args) {
  const int i = Block() * Threads() + Thread();
  if (i >= args.n) return;
  const float a = args.a[i], b = args.b[i];
  const float values[kFunctions] = {
      Add(a, b), Subtract(a, b), Multiply(a, b), Divide(a, b), SquareRoot(b), FusedMultiplyAdd(a, b, args.c[i]),
      Exp(a),    Log(b),         Rsqrt(b),       Sin(a),       Cos(a)};
  for (int j = 0; j < kFunctions; ++j) args.out[j * args.n + i] = values[j];
}

C3PO_KERNEL void Bits(BitArgs args) {
  const int first = Block() * Threads() + Thread(), step = Blocks() * Threads();
  for (int i = first; i < args.n; i += step) {
    const float x = args.x[i];
    args.bfloat16[i] = ToBFloat16(x).bits;
    args.float16[i] = ToFloat16(x).bits;
    args.packed[i] = PackBFloat16(x, -x);
    args.bits[i] = BitsOf(FloatOf(BitsOf(x)));
    args.counts[i] = CountBits(BitsOf(x) | 1u << 31);
    args.counts[args.n + i] = LowestBit(BitsOf(x) | 1u << 31);
  }
  for (int i = first; i < 65536; i += step) {
    args.widened[i] = ToFloat(BFloat16{static_cast<uint16_t>(i)});
    args.widened[65536 + i] = ToFloat(Float16{static_cast<uint16_t>(i)});
  }
}

}  // namespace

Error LaunchPlaces(const PlaceArgs& args, int x, int y, int z, int threads, Stream stream) {
  return Launch(Places, Grid{x, y, z}, threads, 0, stream, args);
}
Error LaunchShuffles(const ShuffleArgs& args, Stream stream) { return Launch(Shuffles, Grid{1}, 32, 0, stream, args); }
Error LaunchVotes(const VoteArgs& args, Stream stream) { return Launch(Votes, Grid{1}, 32, 0, stream, args); }
Error LaunchMatrices(const MatrixArgs& args, Stream stream) { return Launch(Matrices, Grid{1}, 32, 512, stream, args); }
Error LaunchCopies(const CopyArgs& args, Stream stream) { return Launch(Copies, Grid{1}, 64, 2048, stream, args); }
Error LaunchSmallCopies(const SmallCopyArgs& args, Stream stream) {
  return Launch(SmallCopies, Grid{1}, 64, 64 * 12, stream, args);
}
Error LaunchPairs(const PairArgs& args, Stream stream) {
  return Launch(Pairs, Grid{(args.n + 127) / 128}, 128, 0, stream, args);
}
Error LaunchAtomics(const AtomicArgs& args, Stream stream) { return Launch(Atomics, Grid{3}, 32, 0, stream, args); }
Error LaunchArithmetic(const ArithmeticArgs& args, Stream stream) {
  return Launch(Arithmetic, Grid{(args.n + 127) / 128}, 128, 0, stream, args);
}
Error LaunchBits(const BitArgs& args, Stream stream) { return Launch(Bits, Grid{8}, 128, 0, stream, args); }

}  // namespace c3po::host_cuda
