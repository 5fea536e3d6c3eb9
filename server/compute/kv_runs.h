#ifndef C3PO_SERVER_COMPUTE_KV_RUNS_H_
#define C3PO_SERVER_COMPUTE_KV_RUNS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/types/sequence_rows.h"

namespace c3po {

// `length` consecutive positions of a sequence, in the cache's slots from `slot` on; block b is slots
// [b block_positions, (b + 1) block_positions).
struct KvRun {
  int64_t slot = 0;
  int64_t length = 0;
};

// SequenceRows whose positions lie in runs, in their order: of positions [0, start + rows).
struct SequenceRuns {
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t start = 0;
  absl::Span<const KvRun> kv;
};

// The rows of a step with their blocks written out: blocks that follow each other make one run. Keeps its memory.
class PlacedSequences {
 public:
  // Throws std::invalid_argument where a sequence has no blocks for its rows.
  void Assign(absl::Span<const SequenceRows> sequences, int block_positions);
  absl::Span<const SequenceRuns> get() const { return sequences_; }

 private:
  void AppendRuns(absl::Span<const int32_t> blocks, int64_t length, int block_positions);

  std::vector<SequenceRuns> sequences_;
  std::vector<KvRun> runs_;
  std::vector<size_t> begins_;  // of each sequence's runs
};

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_KV_RUNS_H_
