#ifndef C3PO_SERVER_RPC_DOORS_KSERVE_REQUEST_H_
#define C3PO_SERVER_RPC_DOORS_KSERVE_REQUEST_H_

// Messages of KServe's Open Inference Protocol v2 (package inference) to the pipeline's values and back. Pure and
// thread-safe.
//
// A model has one input, text_input, and one output, text_output: BYTES, one element each. Tensors come and go as
// `contents` or as raw contents (four bytes of length, little-endian, before each element), the answer as its request
// did. Parameters of the request:
//   temperature, top_k, top_p, min_p, repetition_penalty, max_tokens, seed, stop, ignore_eos   as in c3po.v1
//   c3po_FIELD     a scalar of OptimizationOptions: c3po_collection, c3po_steps, ...; c3po_method by its word
//   stream         ModelStreamInfer: a response for each piece of text; true where it is left out
// What is neither is refused by its name.

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "c3po/v1/options.pb.h"
#include "grpc_service.pb.h"
#include "server/pipeline/generation_types.h"
#include "server/rpc/doors/field_names.h"

namespace c3po {

inline constexpr char kKserveVersion[] = "1";  // The one of every model here.

struct KserveQuestion {
  GenerateCall call;  // Without context and optimization.
  v1::OptimizationOptions optimization;
  bool stream = true;
};

// The pipeline's names of fields and KServe's.
absl::Span<const FieldName> KserveFieldNames();

// `served`: the model's name; a request may also name MODEL@COLLECTION. `defaults` and `drawn_seed` as in c3po.v1.
// InvalidArgument "FIELD: ..."; NotFound: another model or version.
absl::StatusOr<KserveQuestion> QuestionFromKserve(const inference::ModelInferRequest& request, absl::string_view served,
                                                  const SamplingParams& defaults, uint64_t drawn_seed);

// What names a model in ModelReady and ModelMetadata, and its version. NotFound.
absl::Status CheckKserveModel(absl::string_view field, absl::string_view name, absl::string_view version,
                              absl::string_view served);

// An answer to `request` with this text.
inference::ModelInferResponse TextToKserve(const inference::ModelInferRequest& request, absl::string_view text);

// The parameters of the last response to a request: finish_reason ("stop" or "length"), prompt_tokens,
// completion_tokens, c3po_method and c3po_gate.
void AddEnd(const CallSummary& summary, const OptimizationReport& report, inference::ModelInferResponse& response);

inference::ModelMetadataResponse MetadataToKserve(absl::string_view name);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_KSERVE_REQUEST_H_
