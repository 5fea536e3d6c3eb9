#ifndef C3PO_TESTS_INDEX_CUDA_TESTED_INDEX_DEVICE_H_
#define C3PO_TESTS_INDEX_CUDA_TESTED_INDEX_DEVICE_H_

#include <cstdint>
#include <memory>

#include "index/search/cuda/index_device.h"

namespace c3po {

// A device for the indexes of a test, which keeps a runtime of its own alive where it has one. A program has one
// definition: host_index_device.cc, on the execution model of tests/host_cuda, or tests/gpu/index_kernels_on_gpu.cc.
// Throws std::runtime_error where there is none.
std::shared_ptr<IndexDevice> OpenTestedIndexDevice(int64_t budget_bytes = int64_t{256} << 20);

}  // namespace c3po

#endif  // C3PO_TESTS_INDEX_CUDA_TESTED_INDEX_DEVICE_H_
