// The primitives of kernels on a real GPU.

#include "index/base/cuda/runtime.h"
#include "tests/gpu/runtime_contract.h"

// Linked in, not opened from libc3po_cuda.so: kernels and streams are of one CUDA runtime.
extern "C" c3po::cuda::Runtime* c3po_cuda_runtime(int version, c3po::cuda::Error* error);

namespace c3po {

cuda::Runtime* OpenTestedRuntime(std::string* why) {
  cuda::Error error = nullptr;
  cuda::Runtime* const runtime = c3po_cuda_runtime(cuda::kCudaLibraryVersion, &error);
  if (runtime == nullptr) *why = std::string("device cuda: ") + (error != nullptr ? error : "another version");
  return runtime;
}

}  // namespace c3po
