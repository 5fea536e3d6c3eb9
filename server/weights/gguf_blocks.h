#ifndef C3PO_SERVER_WEIGHTS_GGUF_BLOCKS_H_
#define C3PO_SERVER_WEIGHTS_GGUF_BLOCKS_H_

#include <cstddef>
#include <cstdint>

#include "server/weights/safetensors_file.h"

namespace c3po {

// Blocks of quantized weights as GGUF files hold them (https://github.com/ggml-org/ggml, docs/gguf.md and
// src/ggml-common.h). d, m: IEEE halves; q: unsigned codes; s: of a sub-block.
//   type  elements      value          a block's bytes
//   Q4_0  32 of 4 bits  d (q - 8)      d, 16 bytes: element i in the low half of byte i, i + 16 in the high one
//   Q4_1  32 of 4 bits  d q + m        d, m, codes as above
//   Q5_0  32 of 5 bits  d (q - 16)     d, 32 fifth bits, the other four as above
//   Q5_1  32 of 5 bits  d q + m        d, m, likewise
//   Q8_0  32 of 8 bits  d q            d, signed codes
//   Q4_K  256 of 4      d s q - m t    d, m, 8 pairs (s, t) of 6 bits in 12 bytes, codes by 64: two sub-blocks of 32
//   Q5_K  256 of 5      d s q - m t    d, m, the pairs, 32 bytes of fifth bits: bit j is sub-block j's, then codes
//   Q6_K  256 of 6      d s (q - 32)   low 4 bits, high 2 bits, 16 signed scales of 8 bits, d
//
// Every step is one float32 operation rounded to nearest, in the order of PyPI's `gguf` (gguf.quants.dequantize): the
// values are its values bit for bit, where they are numbers.

// Of a type with blocks.
bool IsBlockType(DType type);

// `count` elements, a multiple of DTypeBlock(type). `from` needs no alignment and must not overlap `to`. Throws
// std::invalid_argument for another type or count. Pure and thread-safe.
void DequantizeBlocks(DType type, const std::byte* from, int64_t count, float* to);

}  // namespace c3po

#endif  // C3PO_SERVER_WEIGHTS_GGUF_BLOCKS_H_
