#include "server/admission/stage_estimates.h"

namespace c3po {
namespace {

constexpr double kWeight = 0.2;
constexpr absl::Duration kFresh = absl::Minutes(1);

void Blend(double measured, double& mean) { mean = mean == 0 ? measured : mean + kWeight * (measured - mean); }

}  // namespace

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

bool StageEstimates::fresh(absl::Time now) const { return now - measured_ < kFresh; }

absl::Duration StageEstimates::WithoutSteps(const RequestWork& work) const {
  const double retrieval = work.retrieves ? retrieval_ : 0;
  return absl::Seconds(retrieval + per_prompt_token_ * work.prompt_tokens + per_unit_ * work.prepared_cases +
                       per_token_);
}

}  // namespace c3po
