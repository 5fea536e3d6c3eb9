#ifndef C3PO_SERVER_SAMPLING_SAMPLER_H_
#define C3PO_SERVER_SAMPLING_SAMPLER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/types/sampled_token.h"
#include "server/types/sampling_params.h"

namespace c3po {

// InvalidArgument naming the field and its range ("top_p: 1.5 is not in (0, 1]") for the first one that breaks the
// ranges in SamplingParams.
absl::Status ValidateSamplingParams(const SamplingParams& params);

// Internal for the first logit that is NaN or infinite, naming its index: the model computed nonsense. Whoever compares
// logits must ask first, because NaN is neither larger nor smaller than anything. Pure and thread-safe.
absl::Status CheckLogits(absl::Span<const float> logits);

// Chooses the next token. With z the logits [vocabulary], in this order:
//   1. logit_bias: z <- z + bias, for each id that has one; then repetition penalty r (CTRL, arXiv 1909.05858), for
//   each distinct id in context_ids: z <- z / r if z > 0, else z * r; then, where `allowed` is given, z <- -infinity
//   for each token that is not in it, so that what follows chooses among the others alone
//   2. temperature T = 0: the answer is the largest z, the lowest id on ties. Otherwise p = softmax(z / T).
//   3. top_k: the k most likely tokens, exactly k; of equally likely ones the lower ids.
//   4. top_p (nucleus, arXiv 1904.09751): of what is left, the shortest prefix in order of likelihood whose share is at
//   least
//      top_p, at least one token; ties as in 3.
//   5. min_p (arXiv 2407.01082): of what is left, tokens with p >= min_p * the largest p.
//   6. the token at the quantile u of what is left, taken in the order of ids; u = PhiloxUniform(seed, position,
//   answer).
// So the choice is a function of the arguments only: not of the batch, of earlier calls or of threads.
// Log-probabilities are of the logits as given, of allowed tokens alone (sampled_token.h), computed only where
// params.logprobs >= 0.
//
// context_ids: prompt and what was generated so far, each in [0, vocabulary); read only when repetition_penalty is
// not 1. position: index of the token in the sequence or the generation, >= 0; one per (seed, draw). Arithmetic on
// probabilities is in double. allowed: bits by id (TokenMatcher::NextTokens), at least one of them set, [vocabulary /
// 32 rounded up]; empty: every token. Time O(vocabulary + context); the vocabulary is never sorted. Pure and
// thread-safe. InvalidArgument: params out of range, empty logits, an id outside the vocabulary (of logit_bias too),
// position < 0, `allowed` of another size or without a token. Internal: as CheckLogits.
absl::StatusOr<SampledToken> Sample(absl::Span<const float> logits, const SamplingParams& params,
                                    absl::Span<const int32_t> context_ids, int64_t position,
                                    absl::Span<const uint32_t> allowed = {});

}  // namespace c3po

#endif  // C3PO_SERVER_SAMPLING_SAMPLER_H_
