#ifndef C3PO_CLIENT_EVAL_CALIBRATION_H_
#define C3PO_CLIENT_EVAL_CALIBRATION_H_

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "c3po/v1/options.pb.h"
#include "client/eval/calibration_labels.h"
#include "client/eval/calibration_outcome.h"
#include "client/eval/item_result.h"
#include "client/eval/statistics.h"
#include "client/eval/task.h"

namespace c3po {

// Answers questions under given options: a server behind leave-one-out, or a test's formula.
class CalibrationScorer {
 public:
  virtual ~CalibrationScorer() = default;
  // One result per question, in the order of `questions`. InvalidArgument, FailedPrecondition, Unimplemented and
  // NotFound mean that these options cannot be had, Internal that they give no numbers; any other error ends the
  // search.
  virtual absl::StatusOr<std::vector<ItemResult>> Score(const v1::OptimizationOptions& options,
                                                        absl::Span<const size_t> questions) = 0;
};

// One value of an axis: the fields of `patch` take the place of the current options'.
struct CalibrationCandidate {
  std::string label;
  v1::OptimizationOptions patch;
};

struct CalibrationAxis {
  std::string name;
  bool descent_only = false;  // Skipped while another method than gradient descent leads.
  std::vector<CalibrationCandidate> candidates;
};

// Puts the fields that `patch` has set into `options`; its critical layers replace theirs.
void ApplyPatch(const v1::OptimizationOptions& patch, v1::OptimizationOptions* options);

// What was found for one point of the search.
struct TriedPoint {
  std::string axis, label;
  v1::OptimizationOptions options;
  size_t questions = 0;  // fewer than the search has, where the point was dropped midway
  double accuracy = 0;   // in [0, 1], over `questions`
  double utility = 0;    // CalibrationSettings says of what, by whether the questions have labels
  double seconds = 0;    // per question
  double worth = 0;      // what points are ranked by: utility less the cost of the seconds
  bool leads = false;    // was the best when it was tried
  // Where the questions have labels: the accuracy after an offset fitted to other questions, and the area under the
  // curve of the choices' margin, both in [0, 1].
  std::optional<double> accuracy_after_offset, auc;
  bool orders_worse = false;  // than the model alone, beyond noise: it may not lead
  std::string refused;        // why the server would not have these options; empty if it did
};

struct CalibrationSettings {
  // What points are ranked by. Without labels the mean of accuracy and of the right choice's probability. With labels
  // the mean of the accuracy after an offset and of the AUC of the choices' margin (calibration_labels.h), for a point
  // as for the model alone. Accuracy as it is would be raised by any shift toward the right label, which an offset
  // gives for nothing. After an offset, accuracy moves in steps of one question; the AUC says the same more finely, and
  // no offset moves it. Neither alone: the AUC also counts pairs far from where the labels part, and one half's
  // accuracy is mostly noise. A point that orders the questions worse than the model alone beyond noise (OrdersWorse)
  // never leads.
  QuestionLabels labels;              // of all questions, by number; none: they do not share their choices
  Metric metric = Metric::kPerToken;  // of GoldProbability
  // Questions by number, to search on. The lift is measured on `check`, which the search never saw, so that the
  // expected lift is not the largest of many noisy figures. Where that is empty, half of `questions` are set apart for
  // it: alike many of each right answer, and alike many that the model as it is answers right. A few dozen questions in
  // two halves differ in that by more than what is measured, if left to chance.
  std::vector<size_t> questions, check;
  v1::OptimizationOptions start;  // every field that the axes move, set
  std::vector<CalibrationAxis> axes;
  // No further point is begun after this; the check still runs.
  absl::Duration budget = absl::InfiniteDuration();
  // What each doubling of the seconds per question, beyond those of the model as it is, must bring in utility, and in
  // the end in lift: worth = utility - cost_weight log2(seconds / seconds of none). At 0.01, 13 times the time must
  // bring 3.7 points; one question in 30 is 3.3.
  double cost_weight = 0.01;
  double drop_margin =
      0.1;  // Points whose utility is this far behind after half of the search's questions are dropped.
  // Whether the user has ended the search, and what to do then: the best point so far answers the check, so that calls
  // must be possible again once `on_ended` returns. May be null.
  std::function<bool()> ended = nullptr;
  std::function<void()> on_ended = nullptr;
  std::function<absl::Time()> now;                            // Not set: the system's clock.
  std::function<void(const TriedPoint&)> on_point = nullptr;  // Told of each point as it is done; may be null.
};

struct CalibrationResult {
  std::vector<TriedPoint> tried;  // the first is method none
  // What is best kept. With kMethod where the questions have no labels, the lift on the check questions is above 0 and
  // above what its seconds must bring; where they have labels, DecideOutcome says. Without kMethod the best point is
  // told all the same.
  CalibrationOutcome outcome = CalibrationOutcome::kNothing;
  v1::OptimizationOptions chosen;  // the best point's, with its gate; METHOD_NONE where none led
  bool none_led = false;  // every point ordered the questions worse than the model alone
  bool budget_spent = false;
  bool ended = false;     // by the user, before every point was tried
  size_t unanswered = 0;  // questions that the model as it is gives no numbers for: in neither half
  std::string gate;       // what the thresholds chosen afterwards are; empty: none
  // On the check questions, with the gate, as answered:
  Estimate lift;  // accuracy minus that of the model as it is, in [-1, 1], with its 95 % interval
  size_t improved = 0, worsened = 0, questions = 0, gated = 0;
  double accuracy = 0, accuracy_none = 0;
  double seconds = 0, seconds_none = 0;  // per question
  std::optional<BeyondLabels> beyond;    // where the questions have labels

  bool helps() const { return outcome == CalibrationOutcome::kMethod; }
  // Whether the collection's label offset belongs to what is kept.
  bool use_offset() const { return beyond && outcome != CalibrationOutcome::kNothing; }
};

// Coordinate search: each axis in turn, each of its candidates with everything else at the best so far, ranked by
// TriedPoint::worth on the search's questions. Then the winner answers those of the check. The gate's thresholds
// (calibration_gate.h) are chosen from the recorded answers of the search, by answers after an offset where the
// questions have labels. InvalidArgument: no questions on a side. Cancelled: ended before a point was tried. Else the
// scorer's errors.
absl::StatusOr<CalibrationResult> Calibrate(const CalibrationSettings& settings, CalibrationScorer& scorer);

// What one model and collection leave to be searched. Axes whose field is set in `fixed` are left out.
struct CalibrationScope {
  uint32_t moe_layers = 0, experts = 0, references = 0;
  bool has_choices = false, has_prior = false, has_amortized = false;
  bool has_labels = false;           // all questions have the same choices
  v1::OptimizationOptions defaults;  // the server's, complete
  v1::OptimizationOptions fixed;     // set by the user
};
std::vector<CalibrationAxis> CalibrationAxes(const CalibrationScope& scope);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_CALIBRATION_H_
