#ifndef C3PO_SERVER_TYPES_SEQUENCE_ROWS_H_
#define C3PO_SERVER_TYPES_SEQUENCE_ROWS_H_

#include <cstdint>

#include "server/types/kv_blocks.h"

namespace c3po {

// Consecutive rows of one sequence: row i attends to positions [0, start + i].
struct SequenceRows {
  int64_t first_row = 0;  // in the step's matrix
  int64_t rows = 0;
  int64_t start = 0;  // position of the first row
  KvBlocks kv;        // of positions [0, start + rows) at least, the rows' own among them
};

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_SEQUENCE_ROWS_H_
