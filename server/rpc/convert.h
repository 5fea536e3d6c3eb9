#ifndef C3PO_SERVER_RPC_CONVERT_H_
#define C3PO_SERVER_RPC_CONVERT_H_

// Protobuf to the pipeline's values and back. Pure and thread-safe. What a message leaves out comes from `defaults`;
// what it sets wrongly is InvalidArgument "FIELD: ...". Ranges are the pipeline's business, except where the conversion
// itself would lose a value.

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "c3po/v1/generation.pb.h"
#include "c3po/v1/options.pb.h"
#include "c3po/v1/reference.pb.h"
#include "server/pipeline/collection_learning.h"
#include "server/pipeline/generation_types.h"
#include "server/pipeline/reference_importer.h"
#include "server/rpc/settings_message.h"
#include "server/text/tokenizer.h"

namespace c3po {

// `drawn_seed` is used when the client gives none.
absl::StatusOr<SamplingParams> SamplingFromProto(const v1::SamplingOptions& options, const SamplingParams& defaults,
                                                 uint64_t drawn_seed);

// InvalidArgument: none is set. What is in it is looked at by CheckForm (server/grammar/form_check.h).
absl::StatusOr<AnswerForm> FormFromProto(const v1::StructuredOutput& form);

absl::StatusOr<PromptInput> InputFromProto(const v1::GenerateRequest& request);
absl::StatusOr<PromptInput> InputFromProto(const v1::ScoreRequest& request);
absl::StatusOr<ExpertsWish> ExpertsFromProto(const v1::GenerateRequest& request);
absl::StatusOr<ExpertsWish> ExpertsFromProto(const v1::ScoreRequest& request);

v1::OptimizationReport ReportToProto(const OptimizationReport& report);
v1::ContinuationScore ScoreToProto(const ContinuationScore& score);
// `tokens` of them from the one at `position` on.
v1::RoutedExperts RoutesToProto(const RoutedExperts& routes, int position, int tokens);
// As many messages as keep each below 1 MiB; a token is never cut.
std::vector<v1::RoutedExperts> RoutePieces(const RoutedExperts& routes);
v1::TextDelta ChunkToProto(const TextChunk& chunk, const Tokenizer& tokenizer, bool with_logprobs);
v1::GenerationSummary SummaryToProto(const CallSummary& summary, const std::string& request_id,
                                     const std::string& version);
v1::StageTimings TimingsToProto(const StageTimings& timings);
v1::Provenance ProvenanceToProto(const Provenance& provenance, const std::string& version);

absl::StatusOr<TuneRequest> TuneFromProto(const v1::TunePriorRequest& request, const OptimizationSettings& defaults);
// The collections after `page_token`, by name, as many as `bytes_max` hold, at least one; and the token of the next
// page where there are more.
void StatsPage(const std::map<std::string, v1::CollectionStats>& all, const std::string& page_token, size_t bytes_max,
               v1::GetStatsResponse* out);

// Usable: of the model with this digest.
v1::PriorInfo PriorToProto(const CollectionPrior& prior, absl::string_view model_digest);

v1::OffsetInfo OffsetToProto(const CollectionOffset& offset, bool usable);

ReferenceSample SampleFromProto(const v1::ReferenceSample& sample);
v1::Reference RecordToProto(const ReferenceRecord& record, bool with_pathway);
v1::SampleVerdict VerdictToProto(const SampleVerdict& verdict);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_CONVERT_H_
