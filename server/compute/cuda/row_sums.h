#ifndef C3PO_SERVER_COMPUTE_CUDA_ROW_SUMS_H_
#define C3PO_SERVER_COMPUTE_CUDA_ROW_SUMS_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"

namespace c3po::cuda {

// sums[c] += x[0, c] + x[1, c] + ..., row by row in double precision: the same bits however rows are cut into calls.
struct RowSumsArgs {
  const float* x = nullptr;  // [rows, columns], `stride` apart
  int32_t rows = 0, columns = 0;
  int64_t stride = 0;
  double* sums = nullptr;  // [columns]
};
Error LaunchRowSums(const RowSumsArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_ROW_SUMS_H_
