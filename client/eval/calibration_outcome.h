#ifndef C3PO_CLIENT_EVAL_CALIBRATION_OUTCOME_H_
#define C3PO_CLIENT_EVAL_CALIBRATION_OUTCOME_H_

#include <cstddef>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "client/eval/margin_auc.h"
#include "client/eval/statistics.h"
#include "index/base/label_offset.h"

namespace c3po {

// What a calibration ends with.
enum class CalibrationOutcome {
  kMethod,      // the method found; where the questions have labels, with an offset fitted after it
  kOffsetOnly,  // the model alone with its labels' offset: re-mixing is shown to add nothing beyond it
  kNothing,     // the model as it is
};
// "method", "offset", "none": in notes and JSON.
const char* CalibrationOutcomeName(CalibrationOutcome outcome);

// Two ways to answer the same questions.
struct PairedCounts {
  Estimate difference;  // of accuracy, after less before, in [-1, 1], with Newcombe's 95 % interval
  size_t improved = 0, worsened = 0;
};
// `after` and `before`: whether each answer is right; of one length.
PairedCounts Compare(const std::vector<bool>& after, const std::vector<bool>& before);

// The labels' offset taken out, on the questions of the check. The four ways to answer are the model alone and the
// method, each as it is and with an offset fitted to its own scores of the search's questions. No question of the check
// had part in a fit or in the choice of the method, so that its questions are independent given the fits, as the
// interval and the test of pairs assume. An offset fitted by leaving out within the check would be as unbiased, but its
// folds share questions. Both offsets are fitted to equally many questions, and so to fewer than the server fits its
// offset to: what they give is, if anything, too little, on either side.
struct BeyondLabels {
  double accuracy_none = 0, accuracy = 0;  // in [0, 1], each with its offset
  PairedCounts lift;                       // the method with its offset against the model alone with its own
  double p_value = 1;                      // of `lift`, McNemar's test
  PairedCounts offset;                     // the model alone with its offset against the model as it is
  PairedCounts both;                       // the method with its offset against the model as it is
  // Area under the curve of the choices' margin; absent where fewer than two labels have two questions.
  std::optional<Estimate> auc_none, auc;
  std::optional<AucDifference> auc_difference;
};

// Scores of the labels by the model alone and by the method, on either half. InvalidArgument as FitLabelOffset.
struct HalvesOfScores {
  LabelScores search_none, search, check_none, check;
};
// `right_none`: whether the model as it is has each question of the check right.
absl::StatusOr<BeyondLabels> MeasureBeyondLabels(const HalvesOfScores& scores, const std::vector<bool>& right_none);

// kMethod where the method with its offset
//   - is ahead of the model alone with its own, and that more than `cost`, what its seconds must bring, in [0, 1];
//   - is shown to be: the 95 % interval of that lift is above 0, or that of the difference of AUC is, which sees more
//   on
//     few questions and which no offset moves;
//   - does not order the questions worse: the interval of the difference of AUC is not below 0;
//   - is ahead of the model as it is.
// Else kOffsetOnly where the interval of what the offset gains by itself is above 0. It costs nothing. Else kNothing.
// A method that adds nothing passes two one-sided tests of 2.5 %, so that it is taken in fewer than 5 of 100 cases.
CalibrationOutcome DecideOutcome(const BeyondLabels& beyond, double cost);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_CALIBRATION_OUTCOME_H_
