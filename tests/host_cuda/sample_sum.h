#ifndef C3PO_TESTS_HOST_CUDA_SAMPLE_SUM_H_
#define C3PO_TESTS_HOST_CUDA_SAMPLE_SUM_H_

#include "index/base/cuda/device.h"

// Device code in a header, as kernels share it.
namespace c3po::host_cuda {

// Warp. The sum of the lanes' values, in every lane: of lanes i and i xor 16, 8, 4, 2, 1.
C3PO_DEVICE float SumOfWarp(float value) {
  C3PO_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) value = device::Add(value, device::ShuffleXor(value, mask));
  return value;
}

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_SAMPLE_SUM_H_
