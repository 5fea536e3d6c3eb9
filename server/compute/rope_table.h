#ifndef C3PO_SERVER_COMPUTE_ROPE_TABLE_H_
#define C3PO_SERVER_COMPUTE_ROPE_TABLE_H_

#include <algorithm>
#include <cstdint>
#include <memory>

namespace c3po {

// cos and sin of position * w_i, w_i = theta^(-2i / rope_dim) as stretched by the configuration's RopeScaling:
// float32 [context_window, rope_dim / 2] each, on the host. A value; copies share the tables.
struct RopeTable {
  std::shared_ptr<const float> cos, sin;
  int64_t positions = 0;
  int64_t half = 0;  // rope_dim / 2

  // One position's, `half` entries each.
  void CopyRow(int64_t position, float* cos_row, float* sin_row) const {
    std::copy_n(cos.get() + position * half, half, cos_row);
    std::copy_n(sin.get() + position * half, half, sin_row);
  }
};

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_ROPE_TABLE_H_
