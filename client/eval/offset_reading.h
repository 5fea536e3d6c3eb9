#ifndef C3PO_CLIENT_EVAL_OFFSET_READING_H_
#define C3PO_CLIENT_EVAL_OFFSET_READING_H_

#include <optional>
#include <string>
#include <vector>

#include "client/eval/run_summary.h"

namespace c3po {

// How much of a lift is the labels' offset, in figures and in words made from them. Pure functions.

struct LiftParts {
  double lift = 0;          // the method's accuracy less the baseline's, in [-1, 1]
  double offset_alone = 0;  // what an offset gains without the method, on the same questions
  // Whether that is the row label-offset, fitted to the references. Without it, it is the baseline's own gain by an
  // offset fitted to the other questions (RightAfterOffset), which flatters the offset a little.
  bool from_references = false;
  // The labels' offset as a share of the lift: the smaller one of offset_alone and of the lift over tasks of labels,
  // over the lift, cut to [0, 1]. What a method gains where there are no labels, no offset explains. Absent where there
  // is no lift.
  std::optional<double> share;
};
// Absent where the scope has no tasks of labels, or where no offset could be fitted.
std::optional<LiftParts> LiftPartsOf(const ScopeSummary& scope, const MethodSummary& method);

// What `remaining` shows: lift beyond the offset where its interval is above 0, a loss where it is below.
enum class BeyondVerdict { kLift, kNoneShown, kLoss };
BeyondVerdict VerdictOf(const PairedComparison& remaining);

// Sentences. First, of each method that the server gave an offset, what it has beyond the offset alone, in pairs: the
// row of the model alone that the server gave its offset, or without one the row label-offset. Then of each method that
// optimizes, the lead method first: its lift and the offset's part of it, what remains
// when the offset is fitted after either, the area under the curve; then the tasks where that is lower or higher. Empty
// where the run has no labels.
std::vector<std::string> ReadOffset(const RunSummary& summary);

// "0.842 [0.781, 0.903]"; "-0.044 [-0.071, -0.012]".
std::string FormatAuc(const Estimate& estimate);
std::string FormatAucDifference(const Estimate& estimate);

// The table of what is beyond the labels' offset, the header first: a row per method that has a figure there. Empty
// where none has. Cells are plain text, the first names a method.
std::vector<std::vector<std::string>> BeyondOffsetRows(const ScopeSummary& scope);
// The labels of each task, and their offsets: references by label, the offset without labels and the fitted one.
std::vector<std::vector<std::string>> LabelRows(const std::vector<TaskLabels>& labels);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_OFFSET_READING_H_
