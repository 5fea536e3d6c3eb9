#ifndef C3PO_TESTS_GPU_KERNEL_DEVICE_ON_GPU_H_
#define C3PO_TESTS_GPU_KERNEL_DEVICE_ON_GPU_H_

#include "index/base/cuda/runtime.h"

namespace c3po::host_cuda {

// What kernels of the tests are launched on. Throws std::runtime_error where there is no GPU.
cuda::Stream TestedStream();

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_GPU_KERNEL_DEVICE_ON_GPU_H_
