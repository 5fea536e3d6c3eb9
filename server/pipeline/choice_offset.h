#ifndef C3PO_SERVER_PIPELINE_CHOICE_OFFSET_H_
#define C3PO_SERVER_PIPELINE_CHOICE_OFFSET_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/base/label_offset.h"
#include "index/types/optimization_options.h"
#include "server/pipeline/label_offsets.h"
#include "server/types/sequence_request.h"

namespace c3po {

// The collection's label offset as it is applied to the choices of one request. Pure and thread-safe.

struct ChoiceOffset {
  std::optional<LabelOffset> applied;  // of the continuations, in their order; nothing: scores are the model's own
  std::string warning;                 // what the requester has to know; empty: nothing
};

// What `continuations` get under settings that ask for an offset (use_offset). That is the one that was fitted after
// these settings, whatever the gate then decides about this request: the scores that it was fitted to are those of
// requests with these settings, gated ones in their share, so it is the right one for such a mixture, and which of its
// parts a request belongs to is no news of its label. Without it the one of the model alone, with a warning. Labels are
// matched to continuations letter by letter; where these are not the labels, each once, nothing is applied, with a
// warning. NotFound "collection ...": there is no usable offset; where `may_be_missing`, that is a warning.
// `offsets` may be null: there are none.
absl::StatusOr<ChoiceOffset> ResolveOffset(LabelOffsets* offsets, const OptimizationSettings& settings,
                                           bool may_be_missing, absl::Span<const std::string> continuations);

// Sets each score's offset_score: scale * log-likelihood per token + offset of its label.
void ApplyOffset(const LabelOffset& offset, std::vector<ContinuationScore>& scores);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_CHOICE_OFFSET_H_
