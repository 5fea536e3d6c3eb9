#ifndef C3PO_SERVER_WEIGHTS_STORED_ELEMENTS_H_
#define C3PO_SERVER_WEIGHTS_STORED_ELEMENTS_H_

#include <cstddef>
#include <cstdint>

#include "server/weights/safetensors_file.h"

namespace c3po {

// Elements of a file's weights as numbers to compute with. `from` needs no alignment; `to` must not overlap it. Pure
// and thread-safe.

// Whether a weight may be stored in this type: F32, F16, BF16, F8_E4M3, a GGUF block (gguf_blocks.h), of which
// `count` counts elements and must be a multiple of a block's, or packed levels (packed_tensors.h), whose numbers need
// their scales: RowToFloat32 of host_matrix.h. The functions below throw std::invalid_argument for these and all
// others.
bool IsWeightType(DType type);

// Exact, but for blocks: float32 arithmetic (gguf_blocks.h).
void ToFloat32(DType type, const std::byte* from, int64_t count, float* to);
// The upper halves of float32's bits. Rounded to the nearest, ties to even; exact from BF16 and F8_E4M3.
void ToBfloat16(DType type, const std::byte* from, int64_t count, uint16_t* to);

}  // namespace c3po

#endif  // C3PO_SERVER_WEIGHTS_STORED_ELEMENTS_H_
