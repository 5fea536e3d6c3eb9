#ifndef C3PO_SERVER_COMPUTE_ROPE_TABLE_H_
#define C3PO_SERVER_COMPUTE_ROPE_TABLE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "server/model/config/model_config.h"

namespace c3po {

// cos and sin of position * w_i, w_i = theta^(-2i / rope_dim) as stretched by the configuration's RopeScaling:
// float32 [context_window, rope_dim / 2] each. A value; copies share the tables.
struct RopeTable {
  at::Tensor cos, sin;
  static RopeTable Make(const ModelConfig& config, at::Device device);

  int64_t half() const { return cos.size(-1); }  // rope_dim / 2
  // The rows of `positions` (int64 [R]), as [R, 1, rope_dim / 2] in `dtype`, ready for aten::Rotate.
  RopeTable Select(const at::Tensor& positions, at::ScalarType dtype) const;
  // One position's, half() entries each, of tables on the host.
  void CopyRow(int64_t position, float* cos_row, float* sin_row) const;
};

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_ROPE_TABLE_H_
