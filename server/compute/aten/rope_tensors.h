#ifndef C3PO_SERVER_COMPUTE_ATEN_ROPE_TENSORS_H_
#define C3PO_SERVER_COMPUTE_ATEN_ROPE_TENSORS_H_

#include <ATen/core/Tensor.h>

#include "server/compute/rope_table.h"
#include "server/model/config/model_config.h"

namespace c3po::aten {

// Every backend's table. libtorch's cos and sin make it: those of other libraries differ in the last bit of one entry
// in twenty, and so would every number that a model gives.
RopeTable MakeRopeTable(const ModelConfig& config);

// cos and sin as tensors: all positions, [positions, rope_dim / 2], or those of rows, [R, 1, rope_dim / 2].
struct RopeTensors {
  at::Tensor cos, sin;
  // float32; on the CPU the table's own memory.
  static RopeTensors Of(const RopeTable& table, at::Device device);

  // Of all positions: the rows of `positions` (int64 [R]) in `dtype`, ready for Rotate.
  RopeTensors Select(const at::Tensor& positions, at::ScalarType dtype) const;
};

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_ROPE_TENSORS_H_
