#include "client/eval/calibration_labels.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "client/eval/label_baselines.h"
#include "client/eval/label_task.h"

namespace c3po {

QuestionLabels LabelsOfQuestions(const Task& task) {
  if (task.kind != TaskKind::kChoice) return {};
  std::vector<std::vector<std::string>> choices;
  for (const TaskItem& item : task.items) {
    if (item.gold < 0 || static_cast<size_t>(item.gold) >= item.choices.size()) return {};
    choices.push_back(item.choices);
  }
  const std::vector<std::string> shared = SharedLabels(choices);
  QuestionLabels labels;
  labels.labels = shared.size();
  for (const std::vector<std::string>& each : choices) {
    if (labels.any()) labels.of_choices.push_back(*LabelsOfChoices(shared, each));
  }
  return labels;
}

absl::StatusOr<LabelScores> LabelScoresOf(const QuestionLabels& labels, absl::Span<const size_t> questions,
                                          absl::Span<const ItemResult> answers) {
  LabelScores scores;
  scores.labels = labels.labels;
  for (size_t i = 0; i < answers.size(); ++i) {
    if (!AppendLabelRow(answers[i], Metric::kPerToken, labels.of_choices[questions[i]], &scores)) {
      return absl::InternalError("an answer has no scores of the labels");
    }
  }
  return scores;
}

LabelUtility MeasureLabelUtility(const LabelScores& scores) {
  const std::vector<bool> right = RightAfterOffset(scores);
  LabelUtility utility;
  if (!right.empty()) {
    utility.accuracy =
        static_cast<double>(std::count(right.begin(), right.end(), true)) / static_cast<double>(right.size());
  }
  utility.auc = MeasureMarginAuc(scores);
  return utility;
}

bool OrdersWorse(const LabelUtility& after, const LabelUtility& before) {
  return after.auc && before.auc && CompareMarginAuc({*after.auc}, {*before.auc}).difference.high < 0;
}

std::vector<bool> RightUnder(const LabelOffset& offset, const LabelScores& scores) {
  std::vector<bool> right;
  for (size_t i = 0; i < scores.texts(); ++i) right.push_back(ChooseLabel(offset, scores.row(i)) == scores.gold[i]);
  return right;
}

}  // namespace c3po
