#ifndef C3PO_SERVER_SAMPLING_REDUCED_READOUT_H_
#define C3PO_SERVER_SAMPLING_REDUCED_READOUT_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/types/readout.h"

namespace c3po {

// What a device tells of a row's logits in place of all of them. All are finite.
struct ReducedLogits {
  int32_t likeliest = 0;  // of equals the lowest id
  float likeliest_logit = 0;
  double log_normalizer = 0;  // log sum exp
  // The largest ones in descending order, of equals the lowest id first: LargestNeeded of them, or the whole
  // vocabulary.
  absl::Span<const int32_t> largest_ids;
  absl::Span<const float> largest_logits;
  absl::Span<const float> token_logits;  // of request.tokens
};

// How many of the largest logits a request reads, where these and ReducedLogits are all that it reads; -1 where it
// needs every logit: for all of them, for a draw from more than `largest_max` tokens, under a bias, a penalty or a
// form.
int LargestNeeded(const ReadoutRequest& request, int largest_max);

// What ReadOut (readout.h) says of the logits that these were taken of. Sums over the tokens that a draw keeps may be
// rounded otherwise. Pure and thread-safe.
void ReadOutReduced(const ReducedLogits& logits, const ReadoutRequest& request, Readout& readout);

}  // namespace c3po

#endif  // C3PO_SERVER_SAMPLING_REDUCED_READOUT_H_
