#include "server/sampling/reduced_readout.h"

#include <algorithm>
#include <numeric>

#include "absl/status/statusor.h"
#include "server/sampling/sampler.h"

namespace c3po {
namespace {

// A draw from the top_k largest: Sample of these alone, by id as it goes through them.
absl::StatusOr<int32_t> Draw(const ReducedLogits& logits, const SamplingParams& params, int64_t position) {
  const size_t count = std::min(static_cast<size_t>(params.top_k), logits.largest_ids.size());
  std::vector<size_t> by_id(count);
  std::iota(by_id.begin(), by_id.end(), size_t{0});
  std::sort(by_id.begin(), by_id.end(),
            [&](size_t a, size_t b) { return logits.largest_ids[a] < logits.largest_ids[b]; });
  std::vector<float> kept;
  for (const size_t i : by_id) kept.push_back(logits.largest_logits[i]);
  SamplingParams of_kept = params;
  of_kept.top_k = 0;
  of_kept.logprobs = -1;
  const absl::StatusOr<SampledToken> drawn = Sample(kept, of_kept, {}, position);
  if (!drawn.ok()) return drawn.status();
  return logits.largest_ids[by_id[static_cast<size_t>(drawn->token_id)]];
}

absl::StatusOr<SampledToken> SampleReduced(const ReducedLogits& logits, const ReadoutRequest& request) {
  const SamplingParams& params = *request.sampling;
  SampledToken token;
  if (params.temperature == 0) {
    token.token_id = logits.likeliest;
  } else {
    const absl::StatusOr<int32_t> drawn = Draw(logits, params, request.position);
    if (!drawn.ok()) return drawn.status();
    token.token_id = *drawn;
  }
  if (params.logprobs < 0) return token;
  const auto logprob = [&](float logit) { return static_cast<float>(logit - logits.log_normalizer); };
  const auto* const chosen = std::find(logits.largest_ids.begin(), logits.largest_ids.end(), token.token_id);
  token.logprob = logprob(params.temperature == 0 ? logits.likeliest_logit
                                                  : logits.largest_logits[chosen - logits.largest_ids.begin()]);
  for (size_t i = 0; i < std::min(static_cast<size_t>(params.logprobs), logits.largest_ids.size()); ++i) {
    token.top_logprobs.push_back({logits.largest_ids[i], logprob(logits.largest_logits[i])});
  }
  return token;
}

}  // namespace

int LargestNeeded(const ReadoutRequest& request, int largest_max) {
  if (request.logits) return -1;
  if (request.sampling == nullptr) return 0;
  const SamplingParams& params = *request.sampling;
  // Whoever breaks a range is told by Sample.
  if (!ValidateSamplingParams(params).ok() || request.position < 0) return -1;
  if (!params.logit_bias.empty() || params.repetition_penalty != 1 || request.matcher != nullptr) return -1;
  const bool draws = params.temperature > 0;
  if (draws && (params.top_k == 0 || params.top_k > largest_max)) return -1;
  return std::max(draws ? params.top_k : 0, std::max(params.logprobs, 0));
}

void ReadOutReduced(const ReducedLogits& logits, const ReadoutRequest& request, Readout& readout) {
  readout.token_logits.clear();
  readout.logits.clear();
  readout.status = absl::OkStatus();
  if (request.sampling != nullptr) {
    absl::StatusOr<SampledToken> token = SampleReduced(logits, request);
    readout.status = token.status();
    if (!token.ok()) return;
    readout.token = *std::move(token);
  }
  if (!request.distribution) return;
  readout.likeliest = logits.likeliest;
  readout.likeliest_logit = logits.likeliest_logit;
  readout.log_normalizer = logits.log_normalizer;
  readout.token_logits.assign(logits.token_logits.begin(), logits.token_logits.end());
}

}  // namespace c3po
