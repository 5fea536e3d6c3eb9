#ifndef C3PO_INDEX_SEARCH_CUDA_NARROW_H_
#define C3PO_INDEX_SEARCH_CUDA_NARROW_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"

// Rounds rows to float16 (nearest even), for the scan of halves in scan.h: columns from `dimension` on are zeros.
namespace c3po::cuda {

struct NarrowArgs {
  const float* rows = nullptr;  // [..][row_stride], in device memory
  int row_stride = 0;
  int dimension = 0;
  uint16_t* halves = nullptr;  // [..][half_stride]
  int half_stride = 0;         // even
  int first_row = 0;
  int row_count = 0;  // >= 1
};

Error LaunchNarrow(const NarrowArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_INDEX_SEARCH_CUDA_NARROW_H_
