#include "server/admission/stage_estimates.h"

#include <algorithm>
#include <cmath>

namespace c3po {
namespace {

constexpr double kWeight = 0.2;
constexpr absl::Duration kFresh = absl::Minutes(1);

int UnitsWithoutSteps(const RequestWork& work) { return work.prepared_cases + work.trials; }

void Blend(double measured, double& mean) { mean = mean == 0 ? measured : mean + kWeight * (measured - mean); }

}  // namespace

int64_t RequestWork::Cost() const {
  const int64_t cases = prepared_cases;
  const double passes = passes_per_step * steps + trials;
  const double moved = passes * static_cast<double>(case_rows.value_or(cases * positions)) * moving_share;
  return prompt_tokens + int64_t{output_tokens} + case_tokens.value_or(cases * prompt_tokens) +
         static_cast<int64_t>(std::ceil(moved));
}

void StageEstimates::Rate::Blend(double measured_seconds, double measured_amount) {
  if (measured_amount <= 0) return;
  if (amount == 0) {
    seconds = measured_seconds;
    amount = measured_amount;
    return;
  }
  seconds += kWeight * (measured_seconds - seconds);
  amount += kWeight * (measured_amount - amount);
}

void StageEstimates::Observe(const RequestWork& done, const MeasuredStages& stages, absl::Time now) {
  if (!fresh(now)) *this = StageEstimates();
  if (done.retrieves) Blend(stages.retrieval_seconds, retrieval_);
  prompt_token_.Blend(stages.prefill_seconds, done.prompt_tokens);
  if (stages.optimization_seconds > 0) {
    unit_.Blend(stages.optimization_seconds, UnitsWithoutSteps(done) + UnitsOfStep(done) * done.steps);
  }
  token_.Blend(stages.decode_seconds, done.output_tokens);
  Blend(stages.prefill_seconds + stages.optimization_seconds + stages.decode_seconds, service_);
  measured_ = now;
}

// The parts grow alike, up to twice; where nothing was measured yet, what there is to do takes equal parts.
void StageEstimates::ObserveAtLeast(const RequestWork& work, double seconds, absl::Time now) {
  if (!fresh(now)) *this = StageEstimates();
  const double expected = absl::ToDoubleSeconds(WithoutSteps(work) + PerStep(work) * work.steps);
  if (expected > 0 && expected < seconds) {
    const double growth = 1 + kWeight * std::min(seconds / expected - 1, 1.0 / kWeight);
    for (Rate* part : {&prompt_token_, &unit_, &token_}) part->seconds *= growth;
  } else if (expected == 0) {
    const int units = UnitsWithoutSteps(work) + work.steps;
    const double each = seconds / (units > 0 ? 2 : 1);
    if (work.prompt_tokens > 0) prompt_token_ = {each, static_cast<double>(work.prompt_tokens)};
    if (units > 0) unit_ = {each, static_cast<double>(units)};
  }
  Blend(std::max(seconds, service_), service_);
  measured_ = now;
}

bool StageEstimates::fresh(absl::Time now) const { return now - measured_ < kFresh; }

absl::Duration StageEstimates::WithoutSteps(const RequestWork& work) const {
  const double retrieval = work.retrieves ? retrieval_ : 0;
  return absl::Seconds(retrieval + prompt_token_.each() * work.prompt_tokens + unit_.each() * UnitsWithoutSteps(work) +
                       token_.each());
}

}  // namespace c3po
