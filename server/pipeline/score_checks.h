#ifndef C3PO_SERVER_PIPELINE_SCORE_CHECKS_H_
#define C3PO_SERVER_PIPELINE_SCORE_CHECKS_H_

#include "absl/status/status.h"
#include "server/admission/request_limits.h"
#include "server/pipeline/generation_types.h"

namespace c3po {

// What is wrong with a Score call before anything is tokenized. Pure and thread-safe.
// InvalidArgument: no continuations, or more than there may be; an empty one; choices that are fewer than two, or the
// same.
absl::Status CheckContinuations(const ScoreCall& call, const RequestLimits& limits);
// PermissionDenied: the caller may not ask the oracle. InvalidArgument: an oracle's answer without the method, the
// method without one, or one that is no continuation.
absl::Status CheckOracle(const ScoreCall& call);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_SCORE_CHECKS_H_
