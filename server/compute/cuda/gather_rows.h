#ifndef C3PO_SERVER_COMPUTE_CUDA_GATHER_ROWS_H_
#define C3PO_SERVER_COMPUTE_CUDA_GATHER_ROWS_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"
#include "server/compute/cuda/layout.h"

namespace c3po::cuda {

// Rows of a packed matrix as a packed matrix of their own: row i of `to` is row indices[i] of `from`. What pads `to` is
// zero. So the rows of an LM head that an objective reads are multiplied as the whole of it would be, bit for bit.
struct GatherRowsArgs {
  PackedWeights from;
  const int* indices = nullptr;  // [count], in [0, from.rows)
  int32_t count = 0;
  void* to = nullptr;  // PackedBytes(count, from.columns, from.planes, from.bits)
};
Error LaunchGatherRows(const GatherRowsArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_GATHER_ROWS_H_
