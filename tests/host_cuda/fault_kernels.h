#ifndef C3PO_TESTS_HOST_CUDA_FAULT_KERNELS_H_
#define C3PO_TESTS_HOST_CUDA_FAULT_KERNELS_H_

#include "index/base/cuda/runtime.h"

// Kernels that each do one thing which a GPU does not define.
namespace c3po::host_cuda {

struct FaultArgs {
  enum What : int {
    kNone,
    kSharedByteTooMuch,   // written behind the 64 bytes of shared memory
    kSharedReadTooMuch,   // read there
    kMemoryByteTooMuch,   // written behind `memory`, which has `bytes`
    kCopyAtOddAddress,    // to shared memory that is not 16-byte aligned
    kCopyFromOddAddress,  // from memory that is not
    kCopyBesideShared,    // to memory that is not shared
    kMatrixBesideShared,  // LoadMatrices4 of the last row but half
    kShuffleByTooMuch,    // ShuffleDown by 32
    kLoadAtOddAddress,    // LoadOnce
    kLaunch,              // a kernel from a kernel
    kWaitForAtomic,       // a thread until another one has set a flag
  } what;
  unsigned char* memory;  // 16-byte aligned
  int bytes;
};
// One block of 64 threads with 64 bytes of shared memory.
cuda::Error LaunchFault(const FaultArgs& args, cuda::Stream stream);

struct EarlyArgs {
  bool waits;
};
cuda::Error LaunchEarlyKernel(const EarlyArgs& args, cuda::Stream stream);  // by LaunchEarly

// A launch of a kernel without work, of any shape.
struct ShapeArgs {
  int unused;
};
cuda::Error LaunchShape(int x, int y, int z, int threads, int shared_bytes, cuda::Stream stream);

// `barriers` of each thread of one block.
struct BarrierArgs {
  int barriers;
};
cuda::Error LaunchBarriers(const BarrierArgs& args, int threads, cuda::Stream stream);

// out[i] = the thread that was the i-th of 64 to take a number.
struct OrderArgs {
  unsigned* next;
  unsigned* out;  // [64]
};
cuda::Error LaunchOrder(const OrderArgs& args, cuda::Stream stream);

// Reads a function of kernels outside of one.
int ThreadOutsideOfAKernel();

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_FAULT_KERNELS_H_
