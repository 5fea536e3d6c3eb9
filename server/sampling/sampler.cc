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
#include <type_traits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/base/number_text.h"
#include "index/base/status_macros.h"
#include "server/sampling/philox.h"
#include "server/sampling/softmax.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

struct Candidate {
  float logit;
  int32_t id;
};

bool Before(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

template <typename Number>
absl::Status OutOfRange(absl::string_view field, Number value, absl::string_view range) {
  std::string text;
  if constexpr (std::is_floating_point_v<Number>) {
    text = NumberText(value);
  } else {
    text = absl::StrCat(value);
  }
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", text, " is not in ", range));
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

double SumOf(absl::Span<const double> values) {
  double sums[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] += values[i + lane];
  }
  for (; i < values.size(); ++i) sums[0] += values[i];
  return std::accumulate(std::begin(sums), std::end(sums), 0.0);
}

// The first i at which weights[0] + ... + weights[i] exceeds `uniform` in [0, 1) of their sum; where rounding keeps it
// below, the last one with a weight. At least one weight is positive, none negative.
int32_t AtQuantile(absl::Span<const double> weights, double uniform) {
  constexpr size_t kBlock = 512;  // Passed over by their sums.
  std::vector<double> block_sums;
  for (size_t i = 0; i < weights.size(); i += kBlock) block_sums.push_back(SumOf(weights.subspan(i, kBlock)));
  const double quantile = uniform * std::accumulate(block_sums.begin(), block_sums.end(), 0.0);
  size_t block = 0;
  double before = 0, sum = 0;  // of the weights before `block`; of those looked at
  for (size_t b = 0; b < block_sums.size() && sum <= quantile; ++b) {
    if (block_sums[b] == 0) continue;
    block = b;
    before = sum;
    sum += block_sums[b];
  }
  sum = before;
  size_t chosen = block * kBlock;
  for (size_t i = chosen; i < std::min(weights.size(), (block + 1) * kBlock) && sum <= quantile; ++i) {
    if (weights[i] == 0) continue;
    chosen = i;
    sum += weights[i];
  }
  return static_cast<int32_t>(chosen);
}

absl::Status CheckArguments(absl::Span<const float> logits, absl::Span<const int32_t> context_ids, bool use_context,
                            int64_t position) {
  if (logits.empty()) return absl::InvalidArgumentError("logits: empty");
  if (position < 0) return absl::InvalidArgumentError(absl::StrCat("position: ", position, " is negative"));
  C3PO_RETURN_IF_ERROR(CheckLogits(logits));
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

// The first `count` of the order, in order; count > 0.
std::vector<Candidate> FirstOf(absl::Span<const float> logits, size_t count) {
  constexpr size_t kInsertMax = 256;
  count = std::min(count, logits.size());
  std::vector<Candidate> first;
  if (count <= kInsertMax) {
    // Once there are `count`, a new one rarely enters: the scan is one comparison a token.
    for (size_t i = 0; i < logits.size(); ++i) {
      if (first.size() == count && logits[i] <= first.back().logit) continue;  // Of equal ones the lower id was first.
      const Candidate candidate = {logits[i], static_cast<int32_t>(i)};
      if (first.size() == count) first.pop_back();
      first.insert(std::upper_bound(first.begin(), first.end(), candidate, Before), candidate);
    }
    return first;
  }
  for (size_t i = 0; i < logits.size(); ++i) first.push_back({logits[i], static_cast<int32_t>(i)});
  std::nth_element(first.begin(), first.begin() + static_cast<std::ptrdiff_t>(count - 1), first.end(), Before);
  first.resize(count);
  std::sort(first.begin(), first.end(), Before);
  return first;
}

// SoftmaxWeights in memory that stays with the thread: giving a vocabulary's pages back and asking for them again would
// take longer than the exponentials. The next call in the same thread overwrites it.
absl::Span<double> WeightsInScratch(absl::Span<const float> logits, float max_logit, double temperature) {
  static thread_local std::vector<double> scratch;
  scratch.resize(std::max(scratch.size(), logits.size()));
  const auto weights = absl::MakeSpan(scratch).first(logits.size());
  SoftmaxWeights(logits, max_logit, temperature, weights);
  return weights;
}

bool UsesTopK(const SamplingParams& params, size_t vocabulary) {
  return params.top_k > 0 && static_cast<size_t>(params.top_k) < vocabulary;
}

// The last token that top_k and top_p keep; one of them is on.
Candidate LastKept(absl::Span<const float> logits, absl::Span<const double> weights, const SamplingParams& params) {
  std::vector<Candidate> candidates;
  double sum = 0;
  if (UsesTopK(params, logits.size())) {
    candidates = FirstOf(logits, static_cast<size_t>(params.top_k));
    if (params.top_p == 1) return candidates.back();
    for (const Candidate& candidate : candidates) sum += weights[candidate.id];
  } else {
    sum = SumOf(weights);
    // Tokens whose weight is below (1 - top_p) / vocabulary of the sum hold less than 1 - top_p together: the prefix
    // ends before them. On a model's peaked distributions that is nearly all of the vocabulary.
    const double negligible = sum * (1 - params.top_p) / static_cast<double>(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) {
      if (weights[i] >= negligible) candidates.push_back({logits[i], static_cast<int32_t>(i)});
    }
  }
  return PrefixEnd(absl::MakeSpan(candidates), weights, params.top_p * sum);
}

// Steps 2 to 6 of the header for temperature > 0. `max_logit` is the largest of `logits`.
int32_t Draw(absl::Span<const float> logits, float max_logit, const SamplingParams& params, double uniform) {
  const absl::Span<double> weights = WeightsInScratch(logits, max_logit, params.temperature);
  if (UsesTopK(params, logits.size()) || params.top_p < 1) {
    const Candidate last = LastKept(logits, weights, params);
    for (size_t i = 0; i < logits.size(); ++i) {
      if (Before(last, {logits[i], static_cast<int32_t>(i)})) weights[i] = 0;
    }
  }
  if (params.min_p > 0) {
    for (double& weight : weights) weight = weight < params.min_p ? 0 : weight;
  }
  return AtQuantile(weights, uniform);
}

// What stands for -infinity: any bias, penalty or temperature leaves it so far below every logit that its weight is 0.
constexpr float kForbidden = std::numeric_limits<float>::lowest();

bool IsAllowed(absl::Span<const uint32_t> allowed, size_t id) { return (allowed[id / 32] >> (id % 32) & 1) != 0; }

absl::Status CheckAllowed(absl::Span<const uint32_t> allowed, size_t vocabulary) {
  if (allowed.size() != (vocabulary + 31) / 32) {
    return absl::InvalidArgumentError(
        absl::StrCat("allowed: ", allowed.size(), " words are not those of ", vocabulary, " tokens"));
  }
  for (size_t id = 0; id < vocabulary; ++id) {
    if (allowed[id / 32] == 0) {
      id |= 31;
    } else if (IsAllowed(allowed, id)) {
      return absl::OkStatus();
    }
  }
  return absl::InvalidArgumentError("allowed: has no token");
}

void Forbid(absl::Span<const uint32_t> allowed, absl::Span<float> logits) {
  for (size_t id = 0; id < logits.size(); ++id) logits[id] = IsAllowed(allowed, id) ? logits[id] : kForbidden;
}

// Fills logprob and top_logprobs from the model's own logits, kForbidden where a token is not allowed.
void AddLogprobs(absl::Span<const float> logits, int count, SampledToken& token) {
  const float max_logit = logits[IndexOfLargest(logits)];
  const double log_normalizer = max_logit + std::log(SumOf(WeightsInScratch(logits, max_logit, 1)));
  token.logprob = static_cast<float>(logits[token.token_id] - log_normalizer);
  if (count == 0) return;
  for (const Candidate& candidate : FirstOf(logits, static_cast<size_t>(count))) {
    if (candidate.logit == kForbidden) break;
    token.top_logprobs.push_back({candidate.id, static_cast<float>(candidate.logit - log_normalizer)});
  }
}

}  // namespace

absl::Status CheckLogits(absl::Span<const float> logits) {
  if (AllFinite(logits)) return absl::OkStatus();
  const auto* bad = std::find_if(logits.begin(), logits.end(), [](float logit) { return !std::isfinite(logit); });
  return NotANumberError(
      absl::StrCat("logits[", bad - logits.begin(), "] is ", *bad, ": the model's output is not finite"));
}

absl::Status ValidateSamplingParams(const SamplingParams& params) {
  // Comparisons are written so that NaN fails them.
  if (!(params.temperature >= 0 && params.temperature <= kTemperatureMax))
    return OutOfRange("temperature", params.temperature, "[0, 100]");
  if (params.top_k < 0) return OutOfRange("top_k", params.top_k, "[0, inf)");
  if (!(params.top_p > 0 && params.top_p <= 1)) return OutOfRange("top_p", params.top_p, "(0, 1]");
  if (!(params.min_p >= 0 && params.min_p < 1)) return OutOfRange("min_p", params.min_p, "[0, 1)");
  if (!(params.repetition_penalty >= kRepetitionPenaltyMin && params.repetition_penalty <= kRepetitionPenaltyMax))
    return OutOfRange("repetition_penalty", params.repetition_penalty, "[0.01, 100]");
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
  if (params.prompt_logprobs < -1 || params.prompt_logprobs > kLogprobsMax) {
    return OutOfRange("prompt_logprobs", params.prompt_logprobs, absl::StrCat("[-1, ", kLogprobsMax, "]"));
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
                                    absl::Span<const int32_t> context_ids, int64_t position,
                                    absl::Span<const uint32_t> allowed) {
  C3PO_RETURN_IF_ERROR(ValidateSamplingParams(params));
  const bool use_penalty = params.repetition_penalty != 1;
  C3PO_RETURN_IF_ERROR(CheckArguments(logits, context_ids, use_penalty, position));

  if (!allowed.empty()) C3PO_RETURN_IF_ERROR(CheckAllowed(allowed, logits.size()));

  std::vector<float> biased, penalized, masked;
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
  if (!allowed.empty()) {
    masked.assign(adjusted.begin(), adjusted.end());
    Forbid(allowed, absl::MakeSpan(masked));
    adjusted = masked;
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
  if (params.logprobs < 0) return token;
  absl::Span<const float> own = logits;
  if (!allowed.empty()) {
    biased.assign(logits.begin(), logits.end());  // `adjusted` is not read any more.
    Forbid(allowed, absl::MakeSpan(biased));
    own = biased;
  }
  AddLogprobs(own, params.logprobs, token);
  return token;
}

}  // namespace c3po
