#ifndef C3PO_SERVER_COMPUTE_CUDA_PRODUCTS_H_
#define C3PO_SERVER_COMPUTE_CUDA_PRODUCTS_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"
#include "server/compute/cuda/layout.h"
#include "server/compute/cuda/rows.h"

// Products of rows with one packed matrix W [M, K]: of attention's projections, the LM head, and their way back.
namespace c3po::cuda {

// Of R rows v [R, K] of the source:    y = v W^T [R, M],  or transposed, of rows v [R, M]:  y = v W [R, K].
//   out[r, m] = residual[r, m] + factor * clip((y[r, m] + bias[m]) / divisor)
// in float32. v and W are rounded to W's planes, products are exact, sums float32. A row's result is bitwise the same
// whatever other rows there are, and however many: sums are cut by W's shape alone.
//
// Any R: up to 64 rows read W once, more read it once for 64 of them (many_rows.h). Up to 8 rows, rows that are not in
// planes are made so by each block (rows.h), in shared memory; of more rows, or of many splits of attention, once, by a
// kernel before, into `planes`.
struct ProductArgs {
  PackedWeights weights;
  bool transposed = false;
  int rows = 0;
  RowSource source;
  // kPlanes: the rows, for_transposed where `transposed`. Else room for them, which may be overwritten.
  ActivationPlanes planes;

  float* out = nullptr;  // [R, M or K]
  int64_t out_stride = 0;
  const float* bias = nullptr;  // null: 0
  float divisor = 1;
  float clip = 0;  // > 0: clip(y) = y cut to [-clip, clip], of outputs from clip_begin on. What is no number stays.
  int clip_begin = 0;
  const float* residual = nullptr;  // null: 0; may be `out`
  int64_t residual_stride = 0;
  float factor = 1;

  int multiprocessors = 1;  // of the device
};
Error LaunchProduct(const ProductArgs& args, Stream stream);

// Whether LaunchProduct writes `planes`.
bool ProductNeedsPlanes(const ProductArgs& args);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_PRODUCTS_H_
