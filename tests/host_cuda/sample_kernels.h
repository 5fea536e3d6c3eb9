#ifndef C3PO_TESTS_HOST_CUDA_SAMPLE_KERNELS_H_
#define C3PO_TESTS_HOST_CUDA_SAMPLE_KERNELS_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"

// Kernels with what the server's have: reductions, scans, tiles that are copied while others are multiplied. Their
// mutants (sample_mutants.toml) show what the execution model notices.
namespace c3po::host_cuda {

// y[i] = x[i] / sum of all x, i < n <= 256; one block. Each warp sums lanes i and i xor 16, 8, 4, 2, 1, then the first
// warp sums the warps.
struct ShareArgs {
  const float* x;
  float* y;
  int n;
};
cuda::Error LaunchShare(const ShareArgs& args, cuda::Stream stream);

// y[32 b + i] = x[32 b] + ... + x[32 b + i], by blocks b of one warp.
struct ScanArgs {
  const int* x;
  int* y;
};
cuda::Error LaunchScan(const ScanArgs& args, int blocks, cuda::Stream stream);

// y[i] = x[31 - i], through shared memory; one warp.
struct ReverseArgs {
  const int* x;
  int* y;
};
cuda::Error LaunchReverse(const ReverseArgs& args, cuda::Stream stream);

// y = A B: A [32, k] and B [k, 8] in bfloat16 and y [32, 8] in float32, all row-major; k a multiple of 16. One block of
// two warps, 16 rows each; while one tile of 16 columns of A and rows of B is multiplied the next one is copied.
struct ProductArgs {
  const uint16_t* a;
  const uint16_t* b;
  float* y;
  int k;
};
cuda::Error LaunchProduct(const ProductArgs& args, cuda::Stream stream);

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_SAMPLE_KERNELS_H_
