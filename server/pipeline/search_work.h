#ifndef C3PO_SERVER_PIPELINE_SEARCH_WORK_H_
#define C3PO_SERVER_PIPELINE_SEARCH_WORK_H_

#include "server/admission/stage_estimates.h"

namespace c3po {

// What a pathway search has done so far, counted as RequestWork counts what was asked for. Engine thread only.
struct SearchWork {
  int prepared_cases = 0;  // or begun
  int steps = 0;
  int trials = 0;  // evaluations without a gradient

  void NoteEvaluation(bool with_gradient) { ++(with_gradient ? steps : trials); }

  // In the place of what was asked for. Within `epsilon` there may be more neighbors than the request was admitted for.
  // Losses that a descent looks at beside its steps are in the price of these.
  void PutInto(RequestWork& work) const {
    work.prepared_cases = prepared_cases;
    work.steps = steps;
    if (work.trials > 0) work.trials = trials;
  }
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_SEARCH_WORK_H_
