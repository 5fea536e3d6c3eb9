#ifndef C3PO_SERVER_TYPES_KV_BLOCKS_H_
#define C3PO_SERVER_TYPES_KV_BLOCKS_H_

#include <cstdint>

#include "absl/types/span.h"

namespace c3po {

// The size of a model's cache of keys and values. Block b holds `block_positions` consecutive positions of a sequence.
struct KvCacheShape {
  int64_t blocks = 0;
  int block_positions = 0;
};

// Where the keys and values of a sequence's positions lie: positions [0, beginning_positions) in the blocks of
// `beginning`, which several sequences may name and of which the last need not be full; those from there on in
// `blocks`, from the first position of the first of them. A view.
struct KvBlocks {
  absl::Span<const int32_t> beginning;
  int64_t beginning_positions = 0;
  absl::Span<const int32_t> blocks;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_KV_BLOCKS_H_
