#ifndef C3PO_SERVER_TYPES_READOUT_H_
#define C3PO_SERVER_TYPES_READOUT_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/types/answer_form.h"
#include "server/types/sampled_token.h"
#include "server/types/sampling_params.h"

namespace c3po {

// What somebody wants to know of the distribution that a row gives its next token. A view: what it points to outlives
// the pass. Nothing of it is wanted at first, and then the row's logits are not computed.
struct ReadoutRequest {
  // A token, chosen as Sample (server/sampling/sampler.h) does of these arguments; null: none.
  const SamplingParams* sampling = nullptr;
  absl::Span<const int32_t> context;
  int64_t position = 0;
  // The token is chosen among those that this gives (Sample's `allowed`); null: among all. Asked for when the row is
  // read, by the thread that reads it. `distribution` and `logits` are of all tokens.
  TokenMatcher* matcher = nullptr;

  bool distribution = false;         // likeliest, likeliest_logit, log_normalizer
  absl::Span<const int32_t> tokens;  // with `distribution`: their logits; ids in the vocabulary
  bool logits = false;               // all of them

  bool wanted() const { return sampling != nullptr || distribution || logits; }
};

struct Readout {
  // Internal where a logit is not finite (server/types/status_details.h); as Sample's for its arguments. Where it is
  // not OK, nothing else says anything.
  absl::Status status;
  SampledToken token;
  int32_t likeliest = 0;  // the token with the largest logit, of equals the lowest id
  float likeliest_logit = 0;
  double log_normalizer = 0;  // log sum exp of the logits: log p(token) = logit - log_normalizer
  std::vector<float> token_logits;
  std::vector<float> logits;

  // Of the likeliest token, in (0, 1].
  double largest_probability() const { return std::exp(likeliest_logit - log_normalizer); }
  // Of request.tokens[i].
  float logprob(size_t i) const { return static_cast<float>(token_logits[i] - log_normalizer); }
};

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_READOUT_H_
