#ifndef C3PO_SERVER_TYPES_SAMPLED_TOKEN_H_
#define C3PO_SERVER_TYPES_SAMPLED_TOKEN_H_

#include <cstdint>
#include <vector>

namespace c3po {

// Natural logarithm of a token's probability under the model itself: log softmax of the logits as the model gave them,
// before repetition penalty, temperature and the filters. Of an answer with a form (answer_form.h) these are the logits
// of the tokens that the form allows there, so that their probabilities sum to 1, as in vLLM.
struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0;
};

// One choice of the sampler.
struct SampledToken {
  int32_t token_id = 0;
  float logprob = 0;                       // Of token_id; 0 where SamplingParams::logprobs is -1.
  std::vector<TokenLogprob> top_logprobs;  // SamplingParams::logprobs of them, most likely first, lower id first on
                                           // ties; fewer where a form allows fewer.
};

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_SAMPLED_TOKEN_H_
