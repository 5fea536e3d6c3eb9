#ifndef C3PO_CLIENT_EVAL_CALIBRATION_LABELS_H_
#define C3PO_CLIENT_EVAL_CALIBRATION_LABELS_H_

#include <cstddef>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/eval/item_result.h"
#include "client/eval/margin_auc.h"
#include "client/eval/task.h"
#include "index/base/label_offset.h"

namespace c3po {

// What a calibration judges answers by where all questions share their choices, the labels (label_task.h). There a
// method can be right more often by leaning to another label, which an offset gives without it. All functions are pure
// and thread-safe.

// The labels of numbered questions.
struct QuestionLabels {
  size_t labels = 0;                         // 0: the questions do not share their choices
  std::vector<std::vector<int>> of_choices;  // [questions]: the label of each choice; empty without labels

  bool any() const { return labels > 0; }
};

// Of the task's items, by their index. Without labels where the items do not share their choices, or where an item's
// right choice is none of them.
QuestionLabels LabelsOfQuestions(const Task& task);

// The labels' log-likelihoods per token, as the server adds an offset to them; a row per question. Internal: an answer
// has no scores. Sizes must agree, and the questions have labels.
absl::StatusOr<LabelScores> LabelScoresOf(const QuestionLabels& labels, absl::Span<const size_t> questions,
                                          absl::Span<const ItemResult> answers);

// What a point of the search is ranked by.
struct LabelUtility {
  double accuracy = 0;           // after an offset, RightAfterOffset: no question is judged by a fit that saw it
  std::optional<MarginAuc> auc;  // absent where fewer than two labels have two questions

  // (accuracy + auc) / 2, or the accuracy where there is no AUC; in [0, 1].
  double mean() const { return auc ? 0.5 * (accuracy + auc->value) : accuracy; }
};
LabelUtility MeasureLabelUtility(const LabelScores& scores);

// Whether `after` orders the questions worse than `before` beyond noise: the 95 % interval of the difference of AUC, by
// DeLong's paired test, is below 0. Both are of the same questions. False where either has no AUC.
bool OrdersWorse(const LabelUtility& after, const LabelUtility& before);

// Whether each row is right under an offset that was fitted to other questions.
std::vector<bool> RightUnder(const LabelOffset& offset, const LabelScores& scores);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_CALIBRATION_LABELS_H_
