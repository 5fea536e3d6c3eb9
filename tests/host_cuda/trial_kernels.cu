#include "index/base/cuda/device.h"
#include "tests/host_cuda/trial_kernels.h"

namespace c3po::host_cuda {

using namespace device;  // NOLINT: the language of kernels

namespace {

constexpr int kSumThreads = 256;

C3PO_KERNEL void C3PO_BOUNDS(kSumThreads, 1) BlockSum(BlockSumArgs args) {
  float* const values = static_cast<float*>(SharedMemory());
  values[Thread()] = args.in[Block() * Threads() + Thread()];
  SyncBlock();
  for (int half = Threads() / 2; half > 0; half /= 2) {
    if (Thread() < half) values[Thread()] = Add(values[Thread()], values[Thread() + half]);
    SyncBlock();
  }
  if (Thread() == 0) args.out[Block()] = values[0];
}

C3PO_KERNEL void RacingSum(BlockSumArgs args) {
  float* const values = static_cast<float*>(SharedMemory());
  values[Thread()] = args.in[Thread()];
  SyncBlock();
  for (int half = Threads() / 2; half > 0; half /= 2) {
    if (Thread() < half) values[Thread()] = Add(values[Thread()], values[Thread() + half]);
    SyncWarp();
  }
  if (Thread() == 0) args.out[0] = values[0];
}

C3PO_KERNEL void Neighbor(NeighborArgs args) {
  if (Thread() == 0) args.out[1] = 1;
  if (Thread() == 1) args.out[0] = args.out[1];
}

C3PO_KERNEL void Unknown(UnknownArgs args) {
  auto* const shared = static_cast<Words4*>(SharedMemory());
  if (Thread() != 0) return;
  uint32_t* const out = args.out + 3 * Block();
  out[0] = shared[0].x[3];
  shared[0].x[3] = 5;
  shared[1].x[0] = 6;
  CopyAsync16(&shared[1], args.in);
  CommitCopies();
  out[1] = shared[1].x[0];
  WaitCopies<0>();
  out[2] = shared[1].x[0];
}

C3PO_KERNEL void Ahead(AheadArgs args) {
  if (Lane() == 0) args.out[Warp()] = args.passed[0];
  for (int i = 0; i < 8; ++i) SyncWarp();
  if (Lane() == 0) args.passed[0] += 1;
}

C3PO_KERNEL void EarlyCopy(EarlyCopyArgs args) {
  auto* const shared = static_cast<float*>(SharedMemory());
  const int i = Block() * Threads() + Thread();
  float value = 0;
  LetNextKernelStart();
  if (args.when == EarlyCopyArgs::kReadsBefore) value = args.from[i];
  if (args.when == EarlyCopyArgs::kWritesBefore) args.to[i] = 7;
  if (args.when == EarlyCopyArgs::kCopiesAsyncBefore && Thread() % 4 == 0)
    CopyAsync16(shared + Thread(), args.from + i);
  CommitCopies();
  WaitForPreviousKernel();
  WaitCopies<0>();
  SyncBlock();
  if (args.when == EarlyCopyArgs::kCopiesAsyncBefore) value = shared[Thread()];
  if (args.when == EarlyCopyArgs::kAfter || args.when == EarlyCopyArgs::kWritesBefore) value = args.from[i];
  args.to[i] = value;
}

C3PO_KERNEL void AddOne(AddOneArgs args) {
  const int i = Block() * Threads() + Thread();
  if (i < args.n) args.x[i] += 1;
}

C3PO_KERNEL void Missing(MissingArgs args) {
  switch (args.what) {
    case MissingArgs::kNone:
      SyncBlock();
      break;
    case MissingArgs::kThreadEnds:
      if (Thread() == 40) return;
      SyncBlock();
      break;
    case MissingArgs::kLaneEnds:
      if (Thread() == 35) return;
      ShuffleXor(1, 1);
      break;
    case MissingArgs::kBranches:
      if (Lane() < 16) {
        SyncBlock();
      } else {
        SyncBlock();
      }
      break;
    case MissingArgs::kDifferentCollectives:
      if (Lane() < 16) {
        Ballot(true);
      } else {
        Shuffle(1, 0);
      }
      break;
    case MissingArgs::kBarrierOrWarp:
      if (Thread() == 5) SyncWarp();
      SyncBlock();
      break;
  }
}

}  // namespace

Error LaunchBlockSum(const BlockSumArgs& args, int blocks, Stream stream) {
  return Launch(BlockSum, Grid{blocks}, kSumThreads, kSumThreads * static_cast<int>(sizeof(float)), stream, args);
}

Error LaunchRacingSum(const BlockSumArgs& args, Stream stream) {
  return Launch(RacingSum, Grid{1}, kSumThreads, kSumThreads * static_cast<int>(sizeof(float)), stream, args);
}

Error LaunchNeighbor(const NeighborArgs& args, Stream stream) { return Launch(Neighbor, Grid{1}, 32, 0, stream, args); }

Error LaunchUnknown(const UnknownArgs& args, int blocks, Stream stream) {
  return Launch(Unknown, Grid{blocks}, 32, 2 * static_cast<int>(sizeof(Words4)), stream, args);
}

Error LaunchAhead(const AheadArgs& args, Stream stream) { return Launch(Ahead, Grid{1}, 128, 0, stream, args); }

Error LaunchEarlyCopy(const EarlyCopyArgs& args, Stream stream) {
  return LaunchEarly(EarlyCopy, Grid{4}, 64, 64 * static_cast<int>(sizeof(float)), stream, args);
}

Error LaunchAddOne(const AddOneArgs& args, Stream stream) {
  return Launch(AddOne, Grid{(args.n + 63) / 64}, 64, 0, stream, args);
}

Error LaunchMissing(const MissingArgs& args, Stream stream) { return Launch(Missing, Grid{1}, 64, 0, stream, args); }

}  // namespace c3po::host_cuda
