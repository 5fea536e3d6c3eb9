#include "server/admission/stage_estimates.h"

#include <algorithm>
#include <cmath>

namespace c3po {
namespace {

constexpr double kWeight = 0.2;
constexpr absl::Duration kFresh = absl::Minutes(1);

void Blend(double measured, double& mean) { mean = mean == 0 ? measured : mean + kWeight * (measured - mean); }

}  // namespace

int64_t RequestWork::Cost() const {
  const int64_t cases = prepared_cases;
  const double passes = static_cast<double>(passes_per_step) * steps + trials;
  const double moved = passes * static_cast<double>(cases) * positions * moving_share;
  return prompt_tokens + int64_t{output_tokens} + cases * prompt_tokens + static_cast<int64_t>(std::ceil(moved));
}

void StageEstimates::Observe(const RequestWork& work, const MeasuredStages& stages, absl::Time now) {
  if (!fresh(now)) *this = StageEstimates();
  if (work.retrieves) Blend(stages.retrieval_seconds, retrieval_);
  if (work.prompt_tokens > 0) Blend(stages.prefill_seconds / work.prompt_tokens, per_prompt_token_);
  const int units = work.prepared_cases + work.steps;
  if (units > 0 && stages.optimization_seconds > 0) Blend(stages.optimization_seconds / units, per_unit_);
  if (work.output_tokens > 0) Blend(stages.decode_seconds / work.output_tokens, per_token_);
  Blend(stages.prefill_seconds + stages.optimization_seconds + stages.decode_seconds, service_);
  measured_ = now;
}

// The parts grow alike, up to twice; where nothing was measured yet, what there is to do takes equal parts.
void StageEstimates::ObserveAtLeast(const RequestWork& work, double seconds, absl::Time now) {
  if (!fresh(now)) *this = StageEstimates();
  const double expected = absl::ToDoubleSeconds(WithoutSteps(work) + PerStep() * work.steps);
  if (expected > 0 && expected < seconds) {
    const double growth = 1 + kWeight * std::min(seconds / expected - 1, 1.0 / kWeight);
    for (double* part : {&per_prompt_token_, &per_unit_, &per_token_}) *part *= growth;
  } else if (expected == 0) {
    const int units = work.prepared_cases + work.steps;
    const double each = seconds / (units > 0 ? 2 : 1);
    if (work.prompt_tokens > 0) per_prompt_token_ = each / work.prompt_tokens;
    if (units > 0) per_unit_ = each / units;
  }
  Blend(std::max(seconds, service_), service_);
  measured_ = now;
}

bool StageEstimates::fresh(absl::Time now) const { return now - measured_ < kFresh; }

absl::Duration StageEstimates::WithoutSteps(const RequestWork& work) const {
  const double retrieval = work.retrieves ? retrieval_ : 0;
  return absl::Seconds(retrieval + per_prompt_token_ * work.prompt_tokens + per_unit_ * work.prepared_cases +
                       per_token_);
}

}  // namespace c3po
