#ifndef C3PO_TESTS_INDEX_CUDA_HOST_INDEX_DEVICE_H_
#define C3PO_TESTS_INDEX_CUDA_HOST_INDEX_DEVICE_H_

#include <gtest/gtest.h>

#include <memory>

#include "index/search/cuda/index_device.h"
#include "index/search/cuda/index_kernels.h"
#include "tests/host_cuda/runtime.h"

extern "C" const c3po::cuda::IndexKernels* c3po_index_kernels(int version);

namespace c3po {

inline const cuda::IndexKernels* HostIndexKernels() { return c3po_index_kernels(cuda::kCudaLibraryVersion); }

// A device for indexes on the execution model of tests/host_cuda.
struct HostIndexDevice {
  explicit HostIndexDevice(int64_t budget_bytes = int64_t{256} << 20,
                           host_cuda::HostRuntime::Options options = host_cuda::HostRuntime::Options())
      : runtime(options) {
    auto opened = IndexDevice::Open(&runtime, HostIndexKernels(), budget_bytes);
    EXPECT_TRUE(opened.ok()) << opened.status();
    device = *std::move(opened);
  }

  host_cuda::HostRuntime runtime;
  std::unique_ptr<IndexDevice> device;
};

}  // namespace c3po

#endif  // C3PO_TESTS_INDEX_CUDA_HOST_INDEX_DEVICE_H_
