#ifndef C3PO_CLIENT_EVAL_CHANGED_ANSWERS_H_
#define C3PO_CLIENT_EVAL_CHANGED_ANSWERS_H_

#include <string>
#include <vector>

#include "client/eval/report_input.h"
#include "client/eval/report_plots.h"

namespace c3po {

// The report's table of single questions: question, answers before and after, the right one, neighbors with their
// answers and distances, losses. HTML, in a <details> element for each of worsened and improved; empty where nothing
// changed. A text that the run does not hold is shown as its id, a choice as its number.
std::string ChangedAnswers(const ReportInput& input, const std::vector<ItemChange>& changes);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_CHANGED_ANSWERS_H_
