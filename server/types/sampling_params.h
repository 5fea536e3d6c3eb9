#ifndef C3PO_SERVER_TYPES_SAMPLING_PARAMS_H_
#define C3PO_SERVER_TYPES_SAMPLING_PARAMS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace c3po {

// Limits on what a request may ask for.
inline constexpr int kStopStringsMax = 16;
inline constexpr size_t kStopStringBytesMax = 1024;
inline constexpr int kLogprobsMax = 20;

inline constexpr float kLogitBiasMagnitudeMax = 100;
inline constexpr double kTemperatureMax = 100;  // Beyond, every token is as likely as any other.
inline constexpr double kRepetitionPenaltyMin = 0.01, kRepetitionPenaltyMax = 100;

// What is added to one token's logit.
struct LogitBias {
  int32_t token_id = 0;
  float bias = 0;  // [-kLogitBiasMagnitudeMax, kLogitBiasMagnitudeMax]
};

// How tokens are chosen and when a generation ends. Names and meanings are the field's; server/sampling/sampler.h gives
// the formulas and ValidateSamplingParams checks the ranges.
struct SamplingParams {
  double temperature = 0;  // [0, kTemperatureMax]. 0: greedy, and then top_k, top_p, min_p and seed have no effect.
  int top_k = 0;           // [0, inf). Keep the k most likely tokens; 0: all.
  double top_p = 1;        // (0, 1]. Keep the fewest most likely tokens that hold this much probability.
  double min_p = 0;        // [0, 1). Keep tokens at least this likely relative to the most likely one.
  double repetition_penalty = 1;  // [kRepetitionPenaltyMin, kRepetitionPenaltyMax]. Over 1 discourages tokens that were
                                  // seen, under 1 encourages.
  uint64_t seed = 0;              // Any. Where a client gives none, the server draws one and reports it.
  int n = 1;                      // >= 1; over 1 needs a temperature above 0. Answers to one prompt.
  int answer = 0;                 // [0, n). Which of them: each draws from a stream of its own.
  int max_tokens = 256;           // >= 1. Generated tokens.
  std::vector<std::string> stop;  // At most kStopStringsMax texts of 1 to kStopStringBytesMax bytes.
  int logprobs = -1;              // [-1, kLogprobsMax]. -1: none; n: the chosen token's and the n most likely ones'.
  // [-1, kLogprobsMax]. -1: none; n: the prompt's own tokens', and the n most likely ones' at each place.
  int prompt_logprobs = -1;
  bool ignore_eos = false;            // Go on after an end-of-sequence token.
  std::vector<LogitBias> logit_bias;  // Distinct ids in [0, vocabulary).
};

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_SAMPLING_PARAMS_H_
