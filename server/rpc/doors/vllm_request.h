#ifndef C3PO_SERVER_RPC_DOORS_VLLM_REQUEST_H_
#define C3PO_SERVER_RPC_DOORS_VLLM_REQUEST_H_

// Messages of vllm.grpc.engine to the pipeline's values and back. Pure and thread-safe.
//
// Every field that a request sets is either mapped or refused by its name: one that is not in the lists of
// vllm_request.cc, as of a newer .proto, is refused. What a request leaves out has vLLM's meaning, not c3po.v1's:
// temperature 1, and as many tokens as the context window leaves. Accepted without an effect, as they say how ids
// become text, and answers here are ids: original_text, spaces_between_special_tokens, include_stop_str_in_output.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/pipeline/generation_types.h"
#include "server/rpc/doors/field_names.h"
#include "vllm_engine.pb.h"

namespace c3po {

namespace vllm_engine = ::vllm::grpc::engine;

struct VllmContext {
  int context_window = 0;
  absl::Span<const int32_t> end_tokens;  // of the model
  uint64_t drawn_seed = 0;               // where the request has none
};

// The pipeline's names of fields and vLLM's.
absl::Span<const FieldName> VllmFieldNames();

// Input and sampling; context and optimization are left to who calls. InvalidArgument "FIELD: ..." by the request's own
// names. Ranges are the pipeline's business, with the pipeline's names (VllmFieldNames).
//
//   temperature            below 1e-5: greedy, as vLLM has it
//   top_p, n               0: 1
//   repetition_penalty     0: 1
//   seed                   unset or -1: drawn
//   stop_token_ids         the model's end tokens only, which end an answer anyway
//   logprobs               [0, 20]
//   skip_special_tokens    whether stop strings are looked for in a text without special tokens
absl::StatusOr<GenerateCall> GenerateFromVllm(const vllm_engine::GenerateRequest& request, const VllmContext& context);

// The ids of a prompt to embed. InvalidArgument: none, or more than 2^31 - 1 of an id.
absl::StatusOr<std::vector<int32_t>> IdsFromVllm(const vllm_engine::EmbedRequest& request);

// Adds one token of an answer, and how likely it and `top` others were (SamplingParams::logprobs; -1: not asked for).
template <typename Ids>
void AddToken(const SampledToken& token, int top, Ids* ids, vllm_engine::OutputLogProbs* logprobs) {
  ids->Add(static_cast<uint32_t>(token.token_id));
  if (top < 0) return;
  logprobs->add_token_logprobs(token.logprob);
  logprobs->add_token_ids(static_cast<uint32_t>(token.token_id));
  if (top == 0) return;
  vllm_engine::TopLogProbs* const likeliest = logprobs->add_top_logprobs();
  for (const TokenLogprob& other : token.top_logprobs) {
    likeliest->add_values(other.logprob);
    likeliest->add_token_ids(static_cast<uint32_t>(other.token_id));
  }
}

// Tokens of one answer as they come. completion_tokens are those of this chunk, as vLLM has it.
vllm_engine::GenerateStreamChunk ChunkToVllm(const TextChunk& chunk, int top);

// The end of an answer, without its ids. `stops` are the request's stop strings.
vllm_engine::GenerateComplete EndToVllm(int index, const AnswerEnd& end, const Usage& usage,
                                        absl::Span<const std::string> stops);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_VLLM_REQUEST_H_
