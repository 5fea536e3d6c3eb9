#ifndef C3PO_SERVER_COMPUTE_CUDA_PRODUCT_OUTPUTS_H_
#define C3PO_SERVER_COMPUTE_CUDA_PRODUCT_OUTPUTS_H_

#include "index/base/cuda/device.h"
#include "server/compute/cuda/products.h"
#include "server/compute/cuda/tile_products.h"

namespace c3po::cuda {

// What ProductArgs makes of a tile's sums: outputs g and g + 8 of unit `unit`, rows first_row + 2t and + 2t + 1 where
// these are below `rows`.
template <bool kTransposed>
C3PO_DEVICE void StoreOutputs(const ProductArgs& args, int unit, int first_row, int rows, const Sums4& total) {
  const int outputs = kTransposed ? args.weights.columns : args.weights.rows;
  C3PO_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int m = OutputOf<kTransposed>(unit, device::Lane() / 4 + 8 * half);
    if (m >= outputs) continue;
    const float bias = args.bias != nullptr ? args.bias[m] : 0.0f;
    C3PO_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int row = first_row + 2 * (device::Lane() % 4) + i;
      if (row >= rows) continue;
      float y = total.x[2 * half + i];
      if (args.bias != nullptr) y = device::Add(y, bias);
      if (args.divisor != 1) y = device::Divide(y, args.divisor);
      if (args.clip > 0 && m >= args.clip_begin) y = y > args.clip ? args.clip : y < -args.clip ? -args.clip : y;
      if (args.factor != 1) y = device::Multiply(y, args.factor);
      if (args.residual != nullptr) y = device::Add(args.residual[row * args.residual_stride + m], y);
      args.out[row * args.out_stride + m] = y;
    }
  }
}

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_PRODUCT_OUTPUTS_H_
