#ifndef C3PO_SERVER_COMPUTE_CUDA_BFLOAT16_PLANES_H_
#define C3PO_SERVER_COMPUTE_CUDA_BFLOAT16_PLANES_H_

#include "index/base/cuda/device.h"
#include "server/compute/cuda/layout.h"

namespace c3po::cuda {

// A float32 as a sum of bfloat16, the largest first: plane i rounds what planes before it left. Three hold all 24 bits.
template <int kPlanes>
struct SplitFloat {
  device::BFloat16 plane[kPlanes];

  C3PO_DEVICE explicit SplitFloat(float x) {
    C3PO_UNROLL for (int i = 0; i < kPlanes; ++i) {
      plane[i] = device::ToBFloat16(x);
      if (i + 1 < kPlanes) x = device::Subtract(x, device::ToFloat(plane[i]));
    }
  }
};

// Of two neighbors, the lower one in the low half of each word.
template <int kPlanes>
struct SplitPair {
  uint32_t plane[kPlanes];

  C3PO_DEVICE SplitPair(float low, float high) {
    C3PO_UNROLL for (int i = 0; i < kPlanes; ++i) {
      plane[i] = device::PackBFloat16(low, high);
      if (i + 1 < kPlanes) {
        low = device::Subtract(low, device::FloatOf(plane[i] << 16));
        high = device::Subtract(high, device::FloatOf(plane[i] & 0xffff0000u));
      }
    }
  }
};

// Entry (row, column) of activations.
template <int kPlanes>
C3PO_DEVICE void StorePlanes(const ActivationPlanes& to, int64_t row, int64_t column, float x) {
  const SplitFloat<kPlanes> split(x);
  C3PO_UNROLL for (int i = 0; i < kPlanes; ++i) {
    to.data[i * to.plane_stride + row * to.stride + column] = split.plane[i].bits;
  }
}

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_BFLOAT16_PLANES_H_
