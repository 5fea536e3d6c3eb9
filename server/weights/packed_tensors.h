#ifndef C3PO_SERVER_WEIGHTS_PACKED_TENSORS_H_
#define C3PO_SERVER_WEIGHTS_PACKED_TENSORS_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/weights/safetensors_file.h"

namespace c3po {

// Weights of 8 and 4 bits in safetensors files: the layout "pack-quantized" of compressed-tensors
// (https://github.com/vllm-project/compressed-tensors, compressors/pack_quantized), as vLLM and transformers read it.
// X.weight [n, k] lies in three tensors:
//   X.weight_packed  I32 [n, ceil(k bits / 32)]  levels plus 2^(bits - 1), consecutive columns from the lowest bit on
//   X.weight_scale   BF16 [n, k / g]             of g consecutive columns each
//   X.weight_shape   I64 [2]                     n, k
// and W[i, j] = scale[i, j / g] level[i, j], with levels in [-2^(bits - 1), 2^(bits - 1) - 1].
struct PackedFormat {
  int bits = 4;                // 8 or 4
  int64_t group_columns = 32;  // g: 16, or a multiple of 32

  friend bool operator==(const PackedFormat& a, const PackedFormat& b) {
    return a.bits == b.bits && a.group_columns == b.group_columns;
  }
};

// Whether a tensor's type is kInt8 or kInt4.
bool IsPackedType(DType type);

// In place of the three parts of each quantized tensor puts one view X.weight, of type kInt8 or kInt4, with its scales.
// Shapes say which of `formats` it has. Parts without X.weight_packed stay as they are. Reads the shapes, not the
// weights. InvalidArgument names the tensor: a part is missing, of another type or of a shape that none of `formats`
// has, or X.weight is there as well.
absl::Status JoinPacked(absl::Span<const PackedFormat> formats,
                        std::map<std::string, TensorView, std::less<>>& tensors);

// Level i of a row of words; i >= 0. Pure.
int PackedLevel(DType type, const std::byte* row, int64_t i);

}  // namespace c3po

#endif  // C3PO_SERVER_WEIGHTS_PACKED_TENSORS_H_
