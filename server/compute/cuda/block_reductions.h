#ifndef C3PO_SERVER_COMPUTE_CUDA_BLOCK_REDUCTIONS_H_
#define C3PO_SERVER_COMPUTE_CUDA_BLOCK_REDUCTIONS_H_

#include "index/base/cuda/device.h"

// Sums and maxima of a warp or block, for kernel code. Their order is fixed, and all threads get the same bits. And the
// end of what several blocks do together.
namespace c3po::cuda {

inline constexpr float kMinusInfinity = -__builtin_inff();

C3PO_DEVICE float PlainSum(float a, float b) { return device::Add(a, b); }
C3PO_DEVICE double PlainSum(double a, double b) { return a + b; }

template <class T>
C3PO_DEVICE T WarpSum(T value) {
  C3PO_UNROLL for (int mask = 16; mask > 0; mask /= 2) { value = PlainSum(value, device::ShuffleXor(value, mask)); }
  return value;
}

// What is not a number is passed over where there are numbers.
C3PO_DEVICE float Larger(float a, float b) { return b > a || a != a ? b : a; }

C3PO_DEVICE float WarpMax(float value) {
  C3PO_UNROLL for (int mask = 16; mask > 0; mask /= 2) { value = Larger(value, device::ShuffleXor(value, mask)); }
  return value;
}

// `scratch`: shared, one T a warp. It may be used again at once.
template <class T>
C3PO_DEVICE T BlockSum(T value, T* scratch) {
  value = WarpSum(value);
  if (device::Lane() == 0) scratch[device::Warp()] = value;
  device::SyncBlock();
  T total = scratch[0];
  for (int w = 1; w < device::Warps(); ++w) total = PlainSum(total, scratch[w]);
  device::SyncBlock();
  return total;
}

C3PO_DEVICE float BlockMax(float value, float* scratch) {
  value = WarpMax(value);
  if (device::Lane() == 0) scratch[device::Warp()] = value;
  device::SyncBlock();
  float top = scratch[0];
  for (int w = 1; w < device::Warps(); ++w) top = Larger(top, scratch[w]);
  device::SyncBlock();
  return top;
}

// 1 / sqrt(sum / n + eps), each operation rounded.
C3PO_DEVICE float InverseRms(float sum_of_squares, int n, float eps) {
  const float mean = device::Divide(sum_of_squares, static_cast<float>(n));
  return device::Divide(1.0f, device::SquareRoot(device::Add(mean, eps)));
}

// Whether this block is the last of `blocks` to come here; it then sees what the others wrote. `arrived`: global, 0
// before and after. `shared`: one word. A collective of the block.
C3PO_DEVICE bool IsLastToArrive(int* arrived, int blocks, int* shared) {
  device::ThreadFence();
  device::SyncBlock();
  if (device::Thread() == 0) {
    device::ThreadFence();
    const bool last = device::AtomicAdd(arrived, 1) == blocks - 1;
    if (last) *arrived = 0;  // for the next launch
    *shared = last ? 1 : 0;
    device::ThreadFence();
  }
  device::SyncBlock();
  return *shared != 0;
}

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_BLOCK_REDUCTIONS_H_
