#ifndef C3PO_CLIENT_EVAL_CHOICE_METRICS_H_
#define C3PO_CLIENT_EVAL_CHOICE_METRICS_H_

#include <vector>

#include "client/eval/item_result.h"
#include "client/eval/task.h"

namespace c3po {

// Judges a multiple-choice question from result->log_likelihoods and token_counts, one per choice: fills byte_counts,
// gold, predicted, the three correct_* and correct. Of equal scores the first choice is taken, as the harness does.
// Where result->offset_scores are there, they choose in the place of every metric.
void JudgeChoices(const Task& task, const TaskItem& item, ItemResult* result);

// Judges by a choice found otherwise (a vote); -1 is none, and wrong.
void JudgePrediction(const TaskItem& item, int predicted, ItemResult* result);

// The probability that the choices' normalized log-likelihoods give to the right one:
// exp(s_gold) / sum_c exp(s_c), s the score of the metric. 1 or 0 by `correct` where there are no log-likelihoods.
double GoldProbability(const ItemResult& result, Metric metric);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_CHOICE_METRICS_H_
