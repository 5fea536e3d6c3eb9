#ifndef C3PO_TESTS_HOST_CUDA_TRIAL_KERNELS_H_
#define C3PO_TESTS_HOST_CUDA_TRIAL_KERNELS_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"

// Small kernels that the execution model is tried on.
namespace c3po::host_cuda {

// out[b] = the sum of in's 256 values at 256 b, by halves in shared memory; one block of 256 threads each.
struct BlockSumArgs {
  const float* in;
  float* out;
};
cuda::Error LaunchBlockSum(const BlockSumArgs& args, int blocks, cuda::Stream stream);

// The same, of one block, with its warp's barrier where the block's should be: a race.
cuda::Error LaunchRacingSum(const BlockSumArgs& args, cuda::Stream stream);

// Thread 1 reads what thread 0 writes, without a barrier: out[0] = 1, or 0 where it came first. out[1] is 0 at first.
struct NeighborArgs {
  int* out;
};
cuda::Error LaunchNeighbor(const NeighborArgs& args, cuda::Stream stream);

// What is unknown: out[b][0] of block b is a word of shared memory that an earlier block may have written; out[b][1] a
// word that is being copied to; out[b][2] the same once the copy was waited for.
struct UnknownArgs {
  const uint32_t* in;  // [4]
  uint32_t* out;       // [blocks][3]
};
cuda::Error LaunchUnknown(const UnknownArgs& args, int blocks, cuda::Stream stream);

// out[w] = how many of the block's 4 warps had passed all of their 8 barriers before warp w came to its first one.
struct AheadArgs {
  int* passed;  // [1]
  int* out;     // [4]
};
cuda::Error LaunchAhead(const AheadArgs& args, cuda::Stream stream);

// to[i] = from[i], by 4 blocks of 64 threads, launched early. What is done before WaitForPreviousKernel: see `When`.
struct EarlyCopyArgs {
  enum When : int { kAfter, kReadsBefore, kWritesBefore, kCopiesAsyncBefore } when;
  const float* from;  // [256]
  float* to;          // [256]
};
cuda::Error LaunchEarlyCopy(const EarlyCopyArgs& args, cuda::Stream stream);

// x[i] += 1 for i < n, by blocks of 64 threads.
struct AddOneArgs {
  float* x;
  int n;
};
cuda::Error LaunchAddOne(const AddOneArgs& args, cuda::Stream stream);

// Whoever of 64 threads is not to come stays away.
struct MissingArgs {
  enum What : int {
    kNone,
    kThreadEnds,            // thread 40 ends before the barrier
    kLaneEnds,              // lane 3 of warp 1 ends before a shuffle
    kBranches,              // half the warp at one barrier, half at another
    kDifferentCollectives,  // half the warp votes, half shuffles
    kBarrierOrWarp,         // one warp at the block's barrier, one thread of the other at its warp's
  } what;
};
cuda::Error LaunchMissing(const MissingArgs& args, cuda::Stream stream);

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_TRIAL_KERNELS_H_
