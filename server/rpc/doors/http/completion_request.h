#ifndef C3PO_SERVER_RPC_DOORS_HTTP_COMPLETION_REQUEST_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_COMPLETION_REQUEST_H_

// The bodies of POST /v1/completions and /v1/chat/completions. Fields mean what they mean to vLLM, and leaving one out
// too: temperature 1, 16 tokens of a text completion, all that the window leaves of a chat's. Pure and thread-safe.
//
//   read       completion_fields.cc: what both have; text_request.cc and chat_request.cc: the rest
//   c3po       an object of OptimizationOptions' fields (c3po_choice.h)
//   refused    what is known to others and not done here: InvalidArgument "FIELD: ...", unless it says what leaving it
//   out says ignored    any other field, as vLLM does; `unknown` has its name for the log

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "c3po/v1/options.pb.h"
#include "server/pipeline/generation_types.h"
#include "server/rpc/doors/field_names.h"
#include "server/rpc/doors/http/answer_constraint.h"
#include "server/rpc/doors/http/json_fields.h"

namespace c3po {

// What a request is read by.
struct ServedModel {
  absl::string_view name;  // A request may also name MODEL@COLLECTION.
  int context_window = 0;
  absl::Span<const int32_t> end_tokens;
  uint64_t drawn_seed = 0;  // Of a request that gives none.
  int prompts_max = 256;    // Of one text completion.
};

struct CompletionRequest {
  bool chat = false;
  std::vector<PromptInput> prompts;  // One or more; of a chat, its conversation.
  SamplingParams sampling;
  bool max_tokens_given = false;
  bool skip_special_tokens = true;
  std::optional<AnswerConstraint> constraint;
  v1::OptimizationOptions optimization;
  bool optimizes = false;  // It says something of the optimization: by `c3po`, or by the model's name.

  bool echo = false;           // The prompt comes before each answer.
  bool only_prompt = false;    // max_tokens 0 with echo: no answer. One token is generated all the same, and dropped.
  bool tokens_as_ids = false;  // Tokens beside log-probabilities are written "token_id:5".
  bool stream = false;
  bool include_usage = false, continuous_usage = false;  // stream_options

  std::string model;       // As the request named it.
  std::string request_id;  // Empty: it has none.
  std::vector<std::string> unknown;
};

// InvalidArgument; NotFound: another model.
absl::StatusOr<CompletionRequest> ReadTextRequest(absl::string_view body, const ServedModel& served);
absl::StatusOr<CompletionRequest> ReadChatRequest(absl::string_view body, const ServedModel& served);

// The pipeline's names of fields and these.
absl::Span<const FieldName> CompletionFieldNames();

// --- Of both requests ---

// Their fields but those of one of them; a table for JsonFields::Check has these first.
std::vector<KnownField> CommonFields();
// All that CommonFields calls read, except n, logprobs and what bounds the answer's length.
absl::Status ReadCommon(const JsonFields& fields, const ServedModel& served, CompletionRequest& request);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_COMPLETION_REQUEST_H_
