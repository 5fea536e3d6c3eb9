#ifndef C3PO_SERVER_PIPELINE_CONFIDENCE_H_
#define C3PO_SERVER_PIPELINE_CONFIDENCE_H_

#include <cstdint>
#include <vector>

#include "server/types/readout.h"

namespace c3po {

// The largest of softmax(logits), in (0, 1]. `logits` is not empty.
double LargestProbability(const std::vector<double>& logits);

// How sure a model is of what it would say next: its probability of its likeliest token; where a request chooses among
// continuations whose first tokens differ, its probability among those tokens. next.token_logits are of choice_tokens,
// in their order, where there are two or more.
double Confidence(const Readout& next, const std::vector<int32_t>& choice_tokens);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_CONFIDENCE_H_
