#ifndef C3PO_SERVER_PIPELINE_CONFIDENCE_H_
#define C3PO_SERVER_PIPELINE_CONFIDENCE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace c3po {

// The largest of softmax(logits), in (0, 1]. `logits` is not empty.
double LargestProbability(const std::vector<double>& logits);

// How sure a model is of what it would say next, from its logits [vocabulary]: its probability of its likeliest token;
// where a request chooses among continuations whose first tokens differ, its probability among those tokens.
double Confidence(absl::Span<const float> logits, const std::vector<int32_t>& choice_tokens);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_CONFIDENCE_H_
