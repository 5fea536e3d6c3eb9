// The filters top_k, top_p and min_p each keep a prefix of one total order of the tokens: the larger logit first, on
// ties the lower id. Their intersection is a prefix too, and a prefix is described by its last element. So nothing is
// sorted: the last element is found by selection (nth_element halves what is left to search), and the draw walks the
// tokens by id, skipping those beyond it.
#include "server/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/sampling/philox.h"

namespace c3po {
namespace {

struct Candidate {
  float logit;
  int32_t id;
};

bool Before(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

absl::Status OutOfRange(absl::string_view field, double value, absl::string_view range) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, " is not in ", range));
}

// A vocabulary is read for every token. In lanes that do not depend on each other the compiler makes vectors of these
// loops; one maximum carried from element to element it must not reorder.
constexpr size_t kLanes = 16;

bool AllFinite(absl::Span<const float> values) {
  float differences[kLanes] = {};  // x - x is 0, but NaN for infinity and NaN, and stays NaN in a sum.
  size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) differences[lane] += values[i + lane] - values[i + lane];
  }
  for (; i < values.size(); ++i) differences[0] += values[i] - values[i];
  return std::all_of(std::begin(differences), std::end(differences), [](float difference) { return difference == 0; });
}

// The first of the largest. `values`: finite, not empty.
size_t IndexOfLargest(absl::Span<const float> values) {
  float largest[kLanes];
  std::fill_n(largest, kLanes, values[0]);
  size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) largest[lane] = std::max(largest[lane], values[i + lane]);
  }
  for (; i < values.size(); ++i) largest[0] = std::max(largest[0], values[i]);
  return static_cast<size_t>(std::find(values.begin(), values.end(), *std::max_element(largest, largest + kLanes)) -
                             values.begin());
}

absl::Status CheckArguments(absl::Span<const float> logits, absl::Span<const int32_t> context_ids, bool use_context,
                            int64_t position) {
  if (logits.empty()) return absl::InvalidArgumentError("logits: empty");
  if (position < 0) return absl::InvalidArgumentError(absl::StrCat("position: ", position, " is negative"));
  if (!AllFinite(logits)) {
    const auto* bad = std::find_if(logits.begin(), logits.end(), [](float logit) { return !std::isfinite(logit); });
    return absl::InternalError(
        absl::StrCat("logits[", bad - logits.begin(), "] is ", *bad, ": the model's output is not finite"));
  }
  if (!use_context) return absl::OkStatus();
  for (size_t i = 0; i < context_ids.size(); ++i) {
    if (context_ids[i] < 0 || static_cast<size_t>(context_ids[i]) >= logits.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("context_ids[", i, "]: ", context_ids[i], " is not in [0, ", logits.size(), ")"));
    }
  }
  return absl::OkStatus();
}

absl::Status AddBias(absl::Span<const LogitBias> biases, absl::Span<float> logits) {
  for (const LogitBias& b : biases) {
    if (b.token_id < 0 || static_cast<size_t>(b.token_id) >= logits.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("logit_bias[", b.token_id, "]: the vocabulary has ", logits.size(), " tokens"));
    }
    logits[b.token_id] += b.bias;
  }
  return absl::OkStatus();
}

// Writes from `logits` to `penalized`, so an id that occurs twice is penalized once. A product that overflows is held
// at the largest float: order and softmax stay defined.
void Penalize(absl::Span<const float> logits, absl::Span<const int32_t> context_ids, double penalty,
              absl::Span<float> penalized) {
  constexpr double kMax = std::numeric_limits<float>::max();
  for (int32_t id : context_ids) {
    const double logit = logits[id];
    penalized[id] = static_cast<float>(std::clamp(logit > 0 ? logit / penalty : logit * penalty, -kMax, kMax));
  }
}

// The last candidate of the shortest prefix whose weights sum to at least `target` (> 0); the last of all when rounding
// keeps the sum below it. `weights` by id. Reorders `candidates`. Linear time on average: each round searches half of
// the last.
Candidate PrefixEnd(absl::Span<Candidate> candidates, absl::Span<const double> weights, double target) {
  size_t low = 0, high = candidates.size();  // The prefix's length is in (low, high].
  double weight_before = 0;                  // Of candidates[0, low), all of them in the prefix.
  while (high - low > 1) {
    const size_t middle = low + (high - low) / 2;
    std::nth_element(candidates.begin() + low, candidates.begin() + middle, candidates.begin() + high, Before);
    double weight = weight_before;
    for (size_t i = low; i < middle; ++i) weight += weights[candidates[i].id];
    if (weight >= target) {
      high = middle;
    } else {
      low = middle;
      weight_before = weight;
    }
  }
  return candidates[low];
}

// Steps 2 to 6 of the header for temperature > 0. `max_logit` is the largest of `logits`.
int32_t Draw(absl::Span<const float> logits, float max_logit, const SamplingParams& params, double uniform) {
  const size_t vocabulary = logits.size();
  std::vector<double> weights(vocabulary);  // exp((z - max z) / T), 1 for the most likely token.
  for (size_t i = 0; i < vocabulary; ++i) {
    weights[i] = std::exp((static_cast<double>(logits[i]) - max_logit) / params.temperature);
  }

  const bool use_top_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < vocabulary;
  const bool use_top_p = params.top_p < 1;
  Candidate last = {-std::numeric_limits<float>::infinity(), 0};  // Beyond all: everything is kept.
  if (use_top_k || use_top_p) {
    double target = 0;  // The weight that top_p wants kept.
    // Tokens whose weight is below (1 - top_p) / vocabulary of the sum hold less than 1 - top_p together: the prefix
    // ends before them. On a model's peaked distributions that is nearly all of the vocabulary.
    double negligible = 0;
    if (!use_top_k) {
      const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
      target = params.top_p * sum;
      negligible = sum * (1 - params.top_p) / static_cast<double>(vocabulary);
    }
    std::vector<Candidate> candidates;
    candidates.reserve(vocabulary);
    for (size_t i = 0; i < vocabulary; ++i) {
      if (weights[i] >= negligible) candidates.push_back({logits[i], static_cast<int32_t>(i)});
    }
    if (use_top_k) {
      std::nth_element(candidates.begin(), candidates.begin() + (params.top_k - 1), candidates.end(), Before);
      candidates.resize(params.top_k);
      last = candidates.back();
      double sum = 0;
      for (const Candidate& candidate : candidates) sum += weights[candidate.id];
      target = params.top_p * sum;
    }
    if (use_top_p) last = PrefixEnd(absl::MakeSpan(candidates), weights, target);
  }

  double kept_sum = 0;
  for (size_t i = 0; i < vocabulary; ++i) {
    if (weights[i] < params.min_p || Before(last, {logits[i], static_cast<int32_t>(i)})) weights[i] = 0;
    kept_sum += weights[i];
  }
  const double quantile = uniform * kept_sum;
  double sum = 0;
  int32_t chosen = 0;
  for (size_t i = 0; i < vocabulary; ++i) {
    if (weights[i] == 0) continue;
    chosen = static_cast<int32_t>(i);
    sum += weights[i];
    if (sum > quantile) break;
  }
  return chosen;
}

// Fills logprob and top_logprobs from the model's own logits.
void AddLogprobs(absl::Span<const float> logits, int count, SampledToken& token) {
  const double max_logit = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - max_logit);
  const double log_normalizer = max_logit + std::log(sum);
  token.logprob = static_cast<float>(logits[token.token_id] - log_normalizer);

  // The best `count` so far, best first. A new one rarely enters, so the scan costs one comparison a token.
  const size_t limit = std::min<size_t>(count, logits.size());
  if (limit == 0) return;
  std::vector<Candidate> best;
  for (size_t i = 0; i < logits.size(); ++i) {
    const Candidate candidate = {logits[i], static_cast<int32_t>(i)};
    if (best.size() == limit) {
      if (!Before(candidate, best.back())) continue;
      best.pop_back();
    }
    best.insert(std::upper_bound(best.begin(), best.end(), candidate, Before), candidate);
  }
  for (const Candidate& candidate : best) {
    token.top_logprobs.push_back({candidate.id, static_cast<float>(candidate.logit - log_normalizer)});
  }
}

}  // namespace

absl::Status ValidateSamplingParams(const SamplingParams& params) {
  // Comparisons are written so that NaN fails them.
  if (!(params.temperature >= 0 && std::isfinite(params.temperature))) {
    return OutOfRange("temperature", params.temperature, "[0, inf)");
  }
  if (params.top_k < 0) return OutOfRange("top_k", params.top_k, "[0, inf)");
  if (!(params.top_p > 0 && params.top_p <= 1)) return OutOfRange("top_p", params.top_p, "(0, 1]");
  if (!(params.min_p >= 0 && params.min_p < 1)) return OutOfRange("min_p", params.min_p, "[0, 1)");
  if (!(params.repetition_penalty > 0 && std::isfinite(params.repetition_penalty))) {
    return OutOfRange("repetition_penalty", params.repetition_penalty, "(0, inf)");
  }
  if (params.n < 1) return OutOfRange("n", params.n, "[1, inf)");
  if (params.n > 1 && params.temperature == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("n: ", params.n, " answers would all be the same: greedy decoding, set a temperature above 0"));
  }
  if (params.answer < 0 || params.answer >= params.n) {
    return OutOfRange("answer", params.answer, absl::StrCat("[0, ", params.n, ")"));
  }
  if (params.max_tokens < 1) return OutOfRange("max_tokens", params.max_tokens, "[1, inf)");
  if (params.logprobs < -1 || params.logprobs > kLogprobsMax) {
    return OutOfRange("logprobs", params.logprobs, absl::StrCat("[-1, ", kLogprobsMax, "]"));
  }
  if (params.stop.size() > static_cast<size_t>(kStopStringsMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop: ", params.stop.size(), " strings are more than ", kStopStringsMax));
  }
  for (size_t i = 0; i < params.stop.size(); ++i) {
    if (params.stop[i].empty() || params.stop[i].size() > kStopStringBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("stop[", i, "]: ", params.stop[i].size(), " bytes are not in [1, ", kStopStringBytesMax, "]"));
    }
  }
  for (const LogitBias& b : params.logit_bias) {
    if (!(b.bias >= -kLogitBiasMagnitudeMax && b.bias <= kLogitBiasMagnitudeMax)) {
      return OutOfRange(absl::StrCat("logit_bias[", b.token_id, "]"), b.bias, "[-100, 100]");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<SampledToken> Sample(absl::Span<const float> logits, const SamplingParams& params,
                                    absl::Span<const int32_t> context_ids, int64_t position) {
  C3PO_RETURN_IF_ERROR(ValidateSamplingParams(params));
  const bool use_penalty = params.repetition_penalty != 1;
  C3PO_RETURN_IF_ERROR(CheckArguments(logits, context_ids, use_penalty, position));

  std::vector<float> biased, penalized;
  absl::Span<const float> adjusted = logits;
  if (!params.logit_bias.empty()) {
    biased.assign(logits.begin(), logits.end());
    C3PO_RETURN_IF_ERROR(AddBias(params.logit_bias, absl::MakeSpan(biased)));
    adjusted = biased;
  }
  if (use_penalty && !context_ids.empty()) {
    penalized.assign(adjusted.begin(), adjusted.end());
    Penalize(adjusted, context_ids, params.repetition_penalty, absl::MakeSpan(penalized));
    adjusted = penalized;
  }

  SampledToken token;
  const size_t largest = IndexOfLargest(adjusted);
  if (params.temperature == 0) {
    token.token_id = static_cast<int32_t>(largest);
  } else {
    token.token_id =
        Draw(adjusted, adjusted[largest], params,
             PhiloxUniform(params.seed, static_cast<uint64_t>(position), static_cast<uint32_t>(params.answer)));
  }
  if (params.logprobs >= 0) AddLogprobs(logits, params.logprobs, token);
  return token;
}

}  // namespace c3po
