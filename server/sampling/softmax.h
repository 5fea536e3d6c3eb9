#ifndef C3PO_SERVER_SAMPLING_SOFTMAX_H_
#define C3PO_SERVER_SAMPLING_SOFTMAX_H_

#include "absl/types/span.h"

namespace c3po {

// weights[i] = exp((logits[i] - max_logit) / temperature): softmax without its denominator, 1 for the largest logit.
// Within some units in the last place; where it is below 1e-300, 0 may be given. `logits`: finite, max_logit their
// largest; temperature > 0; `weights` has their size and is overwritten. Thread-safe.
void SoftmaxWeights(absl::Span<const float> logits, float max_logit, double temperature, absl::Span<double> weights);

// log sum exp(logits), the sum in double. Not empty, all finite. Thread-safe.
double LogNormalizer(absl::Span<const float> logits);

}  // namespace c3po

#endif  // C3PO_SERVER_SAMPLING_SOFTMAX_H_
