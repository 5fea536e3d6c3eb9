#ifndef C3PO_TESTS_HOST_CUDA_STREAM_H_
#define C3PO_TESTS_HOST_CUDA_STREAM_H_

#include <string>
#include <typeinfo>

#include "index/base/cuda/runtime.h"
#include "tests/host_cuda/kernel_run.h"

namespace c3po::cuda {

// A stream of the model's runtime (tests/host_cuda/runtime.h).
struct StreamHandle {
  virtual ~StreamHandle() = default;
  virtual Error Enqueue(host_cuda::KernelLaunch launch) = 0;
};

}  // namespace c3po::cuda

namespace c3po::host_cuda {

// Enqueues a kernel, or runs it at once where `stream` is null: so a test of one kernel needs no runtime. The error is
// the CUDA runtime's of a launch that cannot be. Throws KernelFault: the kernel's, or where there is no stream while a
// runtime lives, as a GPU's default stream is in no order with its streams.
cuda::Error Enqueue(cuda::Stream stream, KernelLaunch launch);

void CountRuntimes(int change);  // of those that live

std::string KernelName(const std::type_info& args);  // its argument's type, which is in every symbol table

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_STREAM_H_
