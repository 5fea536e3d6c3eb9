#ifndef C3PO_SERVER_COMPUTE_CUDA_SPLIT_MERGE_H_
#define C3PO_SERVER_COMPUTE_CUDA_SPLIT_MERGE_H_

#include "index/base/cuda/device.h"
#include "server/compute/cuda/block_reductions.h"

namespace c3po::cuda {

// The splits of one row and head, put together in ascending order. For each, Add gives two factors:
//   o = o * kept + split_o * added    as FusedMultiplyAdd(o, kept, Multiply(split_o, added)), o = 0 at first
// and then context = Divide(o, l). Whoever merges does it in just these operations, so that all get the same bits.
struct MergedSplits {
  float m = kMinusInfinity, l = 0;
  float kept = 0, added = 0;

  C3PO_DEVICE void Add(float split_m, float split_l) {
    const float top = split_m > m ? split_m : m;
    const float base = top == kMinusInfinity ? 0.0f : top;  // No difference of infinities.
    kept = device::Exp(device::Subtract(m, base));
    added = device::Exp(device::Subtract(split_m, base));
    l = device::FusedMultiplyAdd(l, kept, device::Multiply(split_l, added));
    m = top;
  }
};

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_SPLIT_MERGE_H_
