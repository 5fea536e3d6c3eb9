#ifndef C3PO_CLIENT_EVAL_CHOICE_SCORES_H_
#define C3PO_CLIENT_EVAL_CHOICE_SCORES_H_

#include <cstddef>
#include <vector>

#include "client/eval/item_result.h"
#include "client/eval/task.h"

namespace c3po {

// What a metric compares the choices of a question by: the log-likelihood in nats, as a sum over tokens (raw), per byte
// or per token. `choice` is below the number of the answer's log-likelihoods; byte and token counts are as many. Pure.
double ChoiceScore(const ItemResult& result, Metric metric, size_t choice);

// Of all choices, in their order. Empty where the answer has no log-likelihoods.
std::vector<double> ChoiceScores(const ItemResult& result, Metric metric);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_CHOICE_SCORES_H_
