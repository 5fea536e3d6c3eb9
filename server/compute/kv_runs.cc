#include "server/compute/kv_runs.h"

#include <algorithm>
#include <stdexcept>

namespace c3po {

// The first `length` positions of `blocks`, behind the runs of the sequence so far.
void PlacedSequences::AppendRuns(absl::Span<const int32_t> blocks, int64_t length, int block_positions) {
  for (size_t i = 0; length > 0; ++i) {
    if (i == blocks.size()) throw std::invalid_argument("a sequence has no blocks for its rows");
    const int64_t slot = int64_t{blocks[i]} * block_positions, part = std::min<int64_t>(length, block_positions);
    const bool follows = runs_.size() > begins_.back() && runs_.back().slot + runs_.back().length == slot;
    if (follows) {
      runs_.back().length += part;
    } else {
      runs_.push_back({slot, part});
    }
    length -= part;
  }
}

void PlacedSequences::Assign(absl::Span<const SequenceRows> sequences, int block_positions) {
  sequences_.clear();
  runs_.clear();
  begins_.clear();
  for (const SequenceRows& rows : sequences) {
    const int64_t length = rows.start + rows.rows, beginning = std::min(rows.kv.beginning_positions, length);
    begins_.push_back(runs_.size());
    AppendRuns(rows.kv.beginning, beginning, block_positions);
    AppendRuns(rows.kv.blocks, length - beginning, block_positions);
  }
  begins_.push_back(runs_.size());
  for (size_t i = 0; i < sequences.size(); ++i) {  // Where the runs lie is known now.
    const SequenceRows& rows = sequences[i];
    sequences_.push_back({rows.first_row, rows.rows, rows.start,
                          absl::MakeConstSpan(runs_).subspan(begins_[i], begins_[i + 1] - begins_[i])});
  }
}

}  // namespace c3po
