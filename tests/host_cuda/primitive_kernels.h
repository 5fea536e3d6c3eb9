#ifndef C3PO_TESTS_HOST_CUDA_PRIMITIVE_KERNELS_H_
#define C3PO_TESTS_HOST_CUDA_PRIMITIVE_KERNELS_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"

// One kernel for each group of primitives of index/base/cuda/device.h. A test runs them on whichever runtime it has:
// the execution model's or a GPU's.
namespace c3po::host_cuda {

// out[t][0..10] of thread t of all: Thread, Threads, Lane, Warp, Warps, Block, Blocks, BlockY, BlocksY, BlockZ,
// BlocksZ. Threads are numbered by block z, y, x, then thread.
inline constexpr int kPlaces = 11;
struct PlaceArgs {
  int* out;
};
cuda::Error LaunchPlaces(const PlaceArgs& args, int x, int y, int z, int threads, cuda::Stream stream);

// Of one warp. Lane i gives value[i], takes from from[i], and shuffles by `by`.
inline constexpr int kShuffles = 4;  // Shuffle, ShuffleXor, ShuffleDown, ShuffleUp
struct ShuffleArgs {
  const float* value;
  const double* wide;
  const int* from;
  int by;
  float* out;        // [kShuffles][32]
  double* wide_out;  // [kShuffles][32]
};
cuda::Error LaunchShuffles(const ShuffleArgs& args, cuda::Stream stream);

// Of one warp. Lane i votes by bit i of `votes`.
struct VoteArgs {
  uint32_t votes;
  uint32_t* out;  // [3][32]: Ballot, Any, All
};
cuda::Error LaunchVotes(const VoteArgs& args, cuda::Stream stream);

// Of one warp: registers [lane][register] in and out.
struct MatrixArgs {
  const uint32_t* a;     // [32][4]
  const uint32_t* b;     // [32][2]
  float* d;              // [32][4], in and out
  const uint32_t* tile;  // [32], of Transpose8x8
  uint32_t* transposed;  // [32]
  const uint32_t* rows;  // [32][4], row i % 8 of matrix i / 8, for LoadMatrices4
  uint32_t* loaded;      // [32][4]
};
cuda::Error LaunchMatrices(const MatrixArgs& args, cuda::Stream stream);

// Of one block of 64 threads: two groups of copies, each thread's 16 bytes. In the second one those of even threads are
// valid, others are zeros.
struct CopyArgs {
  const uint32_t* in;  // [2][64][4]
  uint32_t* out;       // [2][64][4], as the thread 63 - t sees it
};
cuda::Error LaunchCopies(const CopyArgs& args, cuda::Stream stream);

// Of one block of 64 threads: each thread's 8 bytes, then each one's 4 bytes; of threads divisible by 3 zeros.
struct SmallCopyArgs {
  const uint32_t* in;  // [64][2], [64]
  uint32_t* out;       // likewise, as the thread 63 - t sees it
};
cuda::Error LaunchSmallCopies(const SmallCopyArgs& args, cuda::Stream stream);

// Differences of n pairs.
struct PairArgs {
  const uint32_t* a;
  const uint32_t* b;
  uint32_t* differences;
  int n;
};
cuda::Error LaunchPairs(const PairArgs& args, cuda::Stream stream);

// 96 threads in three blocks change the same words, by thread number t of all.
struct AtomicArgs {
  int* signed_words;  // sum of t, largest t - 48, smallest t - 48, exchanged t
  uint32_t* words;    // sum, largest t, smallest t, or of 1 << t % 32, and of ~(1 << t % 32), exchanged, 1 if any t was
                      // first to it
  uint64_t* wide_words;  // sum of t << 32, largest, smallest, exchanged t << 32, 1 << 40 if any t was first to it
  uint32_t* old;         // [96]: what AtomicAdd of 1 found
};
cuda::Error LaunchAtomics(const AtomicArgs& args, cuda::Stream stream);

// For each i < n: functions of a[i], b[i], c[i].
inline constexpr int kFunctions = 11;  // Add .. FusedMultiplyAdd, Exp, Log, Rsqrt, Sin, Cos, in the order of device.h
struct ArithmeticArgs {
  const float* a;
  const float* b;
  const float* c;
  float* out;  // [kFunctions][n]
  int n;
};
cuda::Error LaunchArithmetic(const ArithmeticArgs& args, cuda::Stream stream);

// For each i < n.
struct BitArgs {
  const float* x;
  int n;
  uint16_t* bfloat16;  // [n]
  uint16_t* float16;   // [n]
  uint32_t* packed;    // [n]: of x[i] and -x[i]
  float* widened;      // [2][65536]: every bfloat16, every float16
  uint32_t* bits;      // [n]: BitsOf
  int* counts;         // [2][n]: CountBits and LowestBit of BitsOf(x) | 1 << 31
};
cuda::Error LaunchBits(const BitArgs& args, cuda::Stream stream);

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_PRIMITIVE_KERNELS_H_
