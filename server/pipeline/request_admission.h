#ifndef C3PO_SERVER_PIPELINE_REQUEST_ADMISSION_H_
#define C3PO_SERVER_PIPELINE_REQUEST_ADMISSION_H_

// What a request must pass before the engine gets it: the operator's limits, and the admission controller.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/admission/admission_controller.h"
#include "server/admission/request_limits.h"
#include "server/pipeline/generation_types.h"
#include "server/pipeline/pathway_search.h"
#include "server/types/model_runner.h"

namespace c3po {

// InvalidArgument "sampling.stop...: ..." beyond the limits.
absl::Status CheckStops(const std::vector<std::string>& stop, const RequestLimits& limits);

// InvalidArgument "sampling.n: ..." beyond the limits.
absl::Status CheckAnswers(const SamplingParams& sampling, const RequestLimits& limits);

// InvalidArgument "sampling.logit_bias...: ..." beyond the limits, or of a token outside [0, vocabulary).
absl::Status CheckLogitBias(const SamplingParams& sampling, const RequestLimits& limits, int vocabulary);

// InvalidArgument "FIELD: N tokens are more than ..."; tokens_max 0: no limit.
// InvalidArgument: experts_per_token outside [1, the limit], or beside an optimization or a label offset, both of which
// are of the model's own number: its references' states and pathways, and its scores.
absl::Status CheckExperts(const ExpertsWish& wish, const OptimizationSettings& settings, const RequestLimits& limits,
                          const ModelShape& shape);
// What a sequence is told of the wish: 0 is the model's own number.
int ExpertsPerToken(const ExpertsWish& wish, const ModelShape& shape);
// Counts the routes of so many tokens, which are kept until they are final, as the call's (CallContext::hold_bytes).
// InvalidArgument: `in_one_message`, they are more than a message may hold.
absl::Status HoldRoutes(const CallContext& call, const ExpertsWish& wish, int64_t tokens, bool in_one_message,
                        const ModelShape& shape);
absl::Status CheckTokens(absl::string_view field, size_t tokens, int tokens_max);

// The request's field that `input` came in.
absl::string_view FieldOf(const PromptInput& input);

// Takes the request's place in a model of so many MoE layers (AdmissionController::Permit::Take); where the deadline
// asks for it, with fewer steps in query.settings, and query.shortened set. `permit` may be null: nothing is asked.
// Then charges the caller what all of that costs (CallContext::Charge). Returns what was asked and charged for.
absl::StatusOr<RequestWork> TakePlace(const CallContext& call, AdmissionController::Permit* permit,
                                      size_t prompt_tokens, int output_tokens, int moe_layers, PathwayQuery& query);

// Of `moe_layers`, the share that lies from the first of `critical_layers` on: what a moving row goes through. 1 where
// none is critical.
double MovingShare(const std::vector<int>& critical_layers, int moe_layers);

// In the unit of RequestWork::Cost, `passes` through the layers of `moving_share`, with references prepared once: their
// tokens, and for each pass the rows that move, which are the last `positions` of the prompt and all but the last token
// of each continuation.
int64_t PassesCost(absl::Span<const NeighborCase> cases, int passes, int positions, double moving_share);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_REQUEST_ADMISSION_H_
