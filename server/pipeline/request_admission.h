#ifndef C3PO_SERVER_PIPELINE_REQUEST_ADMISSION_H_
#define C3PO_SERVER_PIPELINE_REQUEST_ADMISSION_H_

// What a request must pass before the engine gets it: the operator's limits, and the admission controller.

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/admission/admission_controller.h"
#include "server/admission/request_limits.h"
#include "server/pipeline/generation_types.h"
#include "server/pipeline/pathway_search.h"

namespace c3po {

// InvalidArgument "sampling.stop...: ..." beyond the limits.
absl::Status CheckStops(const std::vector<std::string>& stop, const RequestLimits& limits);

// InvalidArgument "sampling.n: ..." beyond the limits.
absl::Status CheckAnswers(const SamplingParams& sampling, const RequestLimits& limits);

// InvalidArgument "sampling.logit_bias...: ..." beyond the limits, or of a token outside [0, vocabulary).
absl::Status CheckLogitBias(const SamplingParams& sampling, const RequestLimits& limits, int vocabulary);

// InvalidArgument "FIELD: N tokens are more than ..."; tokens_max 0: no limit.
absl::Status CheckTokens(absl::string_view field, size_t tokens, int tokens_max);

// The request's field that `input` came in.
absl::string_view FieldOf(const PromptInput& input);

// Takes the request's place in a model of so many MoE layers (AdmissionController::Permit::Take); where the deadline
// asks for it, with fewer steps in query.settings, and query.shortened set. `permit` may be null: nothing is asked.
absl::Status TakePlace(AdmissionController::Permit* permit, size_t prompt_tokens, int output_tokens,
                       absl::Time deadline, int moe_layers, PathwayQuery& query);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_REQUEST_ADMISSION_H_
