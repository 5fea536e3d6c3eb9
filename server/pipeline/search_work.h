#ifndef C3PO_SERVER_PIPELINE_SEARCH_WORK_H_
#define C3PO_SERVER_PIPELINE_SEARCH_WORK_H_

#include <algorithm>
#include <cstdint>

#include "server/admission/stage_estimates.h"
#include "server/types/model_runner.h"

namespace c3po {

// The tokens of a neighbor, each of which goes through the model when it is prepared.
inline int64_t CaseTokens(const NeighborCase& one) {
  size_t tokens = one.prompt.size();
  for (const auto& continuation : one.continuations) tokens += continuation.size();
  return static_cast<int64_t>(tokens);
}

// Its rows that a pass moves: the last `positions` of the prompt, and all but the last token of each continuation.
inline int64_t CaseRows(const NeighborCase& one, int positions) {
  size_t rows = std::min(one.prompt.size(), static_cast<size_t>(positions));
  for (const auto& continuation : one.continuations) rows += continuation.size() - 1;
  return static_cast<int64_t>(rows);
}

// What a pathway search has done so far, counted as RequestWork counts what was asked for. Engine thread only.
struct SearchWork {
  int prepared_cases = 0;                  // or begun
  int64_t case_tokens = 0, case_rows = 0;  // CaseTokens and CaseRows of them
  int steps = 0;
  int trials = 0;       // evaluations without a gradient
  int parts_moved = 0;  // since the last whole step

  void NoteCase(const NeighborCase& one, int positions) {
    ++prepared_cases;
    case_tokens += CaseTokens(one);
    case_rows += CaseRows(one, positions);
  }
  // Of one of so many parts of the neighbors: as many with a gradient as there are parts move each neighbor once.
  void NoteEvaluation(bool with_gradient, int parts = 1) {
    if (!with_gradient) {
      ++trials;
    } else if (++parts_moved >= parts) {
      parts_moved = 0;
      ++steps;
    }
  }

  // In the place of what was asked for. There may be more neighbors, within `epsilon`, and longer ones than the request
  // was admitted for.
  // Losses that a descent looks at beside its steps are in the price of these.
  void PutInto(RequestWork& work) const {
    work.prepared_cases = prepared_cases;
    work.case_tokens = case_tokens;
    work.case_rows = case_rows;
    work.steps = steps;
    if (work.trials > 0) work.trials = trials;
  }
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_SEARCH_WORK_H_
