// In the place of libc3po_cuda.so: of any version, without a GPU.

#include "index/base/cuda/runtime.h"

C3PO_CUDA_EXPORT c3po::cuda::Runtime* c3po_cuda_runtime(int version, c3po::cuda::Error* error) {
  *error = nullptr;
  if (version != C3PO_STAND_IN_VERSION) return nullptr;
  *error = "nothing but a stand-in";
  return nullptr;
}

C3PO_CUDA_EXPORT const int* c3po_index_kernels(int version) {
  static const int table = 17;
  return version == C3PO_STAND_IN_VERSION ? &table : nullptr;
}
