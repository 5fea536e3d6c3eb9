#ifndef C3PO_TESTS_HOST_CUDA_COLLECTIVES_H_
#define C3PO_TESTS_HOST_CUDA_COLLECTIVES_H_

#include <cstddef>
#include <cstdint>
#include <source_location>

#include "tests/host_cuda/kernel_run.h"

// What each collective of device.h takes from a thread, gives back, and computes once its group has come.
namespace c3po::host_cuda {

extern const CollectiveKind kSyncBlock, kSyncWarp, kShuffle, kShuffleXor, kShuffleDown, kShuffleUp, kBallot, kAny, kAll,
    kMultiplyAdd, kTranspose, kLoadMatrices;

struct ShuffleArrival : Arrival {
  unsigned char given[8];
  int from;  // 0..31
  unsigned char got[8];
};

struct VoteArrival : Arrival {
  bool given;
  uint32_t got;  // Bit i is lane i's.
};

struct ProductArrival : Arrival {
  float (&d)[4];
  const uint32_t (&a)[4];
  const uint32_t (&b)[2];
};

struct MatrixArrival : Arrival {
  const void* row;    // of LoadMatrices4
  uint32_t words[4];  // Transpose8x8: the first, in and out
};

uint32_t Vote(const CollectiveKind& kind, bool predicate, const std::source_location& place);
int CheckedLaneArgument(int value);                                   // Throws KernelFault where it is not in 0..31.
void CheckAligned(const void* at, const char* what, int bytes = 16);  // Throws where it is not aligned to as many.

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_COLLECTIVES_H_
