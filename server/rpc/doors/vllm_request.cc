#include "server/rpc/doors/vllm_request.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "index/base/status_macros.h"
#include "server/rpc/message_fields.h"

namespace c3po {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr absl::string_view kRequestFields[] = {"request_id",      "tokenized", "text",
                                                "sampling_params", "stream",    "data_parallel_rank"};
constexpr absl::string_view kSamplingFields[] = {"temperature",
                                                 "top_p",
                                                 "top_k",
                                                 "min_p",
                                                 "repetition_penalty",
                                                 "max_tokens",
                                                 "stop",
                                                 "stop_token_ids",
                                                 "skip_special_tokens",
                                                 "spaces_between_special_tokens",
                                                 "ignore_eos",
                                                 "n",
                                                 "logprobs",
                                                 "seed",
                                                 "include_stop_str_in_output",
                                                 "logit_bias",
                                                 "grammar_from_first_token",
                                                 "json_schema",
                                                 "regex",
                                                 "grammar",
                                                 "json_object",
                                                 "choice"};
constexpr absl::string_view kSampling = "sampling_params.";
constexpr float kGreedyBelow = 1e-5F;  // vLLM's _SAMPLING_EPS.

absl::Status Refuse(absl::string_view field, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", why));
}

absl::Status RefuseOtherFields(const Message& message, absl::string_view prefix,
                               absl::Span<const absl::string_view> mapped) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (absl::c_linear_search(mapped, field->name())) continue;
    return Refuse(absl::StrCat(prefix, field->name()), "is not supported by this server");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> IdsOf(const vllm_engine::TokenizedInput& input) {
  std::vector<int32_t> ids;
  ids.reserve(static_cast<size_t>(input.input_ids_size()));
  for (int i = 0; i < input.input_ids_size(); ++i) {
    int id = 0;
    C3PO_RETURN_IF_ERROR(ToInt(absl::StrCat("tokenized.input_ids[", i, "]"), input.input_ids(i), id));
    ids.push_back(id);
  }
  return ids;
}

absl::StatusOr<PromptInput> InputOf(const vllm_engine::GenerateRequest& request) {
  switch (request.input_case()) {
    case vllm_engine::GenerateRequest::kTokenized: {
      C3PO_ASSIGN_OR_RETURN(std::vector<int32_t> ids, IdsOf(request.tokenized()));
      return PromptInput(std::move(ids));
    }
    case vllm_engine::GenerateRequest::kText:
      return PromptInput(request.text());
    case vllm_engine::GenerateRequest::INPUT_NOT_SET:
      break;
  }
  return Refuse("tokenized", "one of tokenized and text must be set");
}

// Ending an answer at the model's own end tokens is what is done anyway.
absl::Status CheckStopTokens(const vllm_engine::SamplingParams& params, absl::Span<const int32_t> end_tokens) {
  for (int i = 0; i < params.stop_token_ids_size(); ++i) {
    const uint32_t id = params.stop_token_ids(i);
    const bool ends = absl::c_any_of(end_tokens, [id](int32_t end) { return static_cast<uint32_t>(end) == id; });
    if (ends && !params.ignore_eos()) continue;
    return Refuse(
        absl::StrCat(kSampling, "stop_token_ids[", i, "]"),
        absl::StrCat(id, ends ? " ends the model's answers, and ignore_eos says that it must not"
                              : " is none of the model's end tokens; no others are supported by this server"));
  }
  return absl::OkStatus();
}

absl::StatusOr<SamplingParams> SamplingOf(const vllm_engine::SamplingParams& params, const VllmContext& context) {
  C3PO_RETURN_IF_ERROR(RefuseOtherFields(params, kSampling, kSamplingFields));
  C3PO_RETURN_IF_ERROR(CheckStopTokens(params, context.end_tokens));
  SamplingParams sampling;
  sampling.temperature = params.has_temperature() ? params.temperature() : 1;
  if (sampling.temperature >= 0 && sampling.temperature < kGreedyBelow) sampling.temperature = 0;
  if (params.top_p() != 0) sampling.top_p = params.top_p();
  C3PO_RETURN_IF_ERROR(ToInt("sampling_params.top_k", params.top_k(), sampling.top_k));
  sampling.min_p = params.min_p();
  if (params.repetition_penalty() != 0) sampling.repetition_penalty = params.repetition_penalty();
  sampling.max_tokens = context.context_window;
  if (params.has_max_tokens())
    C3PO_RETURN_IF_ERROR(ToInt("sampling_params.max_tokens", params.max_tokens(), sampling.max_tokens));
  sampling.stop.assign(params.stop().begin(), params.stop().end());
  sampling.ignore_eos = params.ignore_eos();
  if (params.n() != 0) C3PO_RETURN_IF_ERROR(ToInt("sampling_params.n", params.n(), sampling.n));
  if (params.has_logprobs()) {
    if (params.logprobs() < 0 || params.logprobs() > kLogprobsMax)
      return Refuse("sampling_params.logprobs",
                    absl::StrCat("is ", params.logprobs(), ", must be in [0, ", kLogprobsMax, "]"));
    sampling.logprobs = params.logprobs();
  }
  sampling.seed =
      params.has_seed() && params.seed() != -1 ? static_cast<uint64_t>(int64_t{params.seed()}) : context.drawn_seed;
  for (const auto& [id, bias] : params.logit_bias()) sampling.logit_bias.push_back({id, bias});
  // In one order, whatever the map's: errors name the first one.
  std::sort(sampling.logit_bias.begin(), sampling.logit_bias.end(),
            [](const LogitBias& a, const LogitBias& b) { return a.token_id < b.token_id; });
  return sampling;
}

// A form holds from the first token on, with or without grammar_from_first_token.
absl::StatusOr<std::optional<AnswerForm>> FormOf(const vllm_engine::SamplingParams& params) {
  using Vllm = vllm_engine::SamplingParams;
  using Kind = AnswerForm::Kind;
  switch (params.constraint_case()) {
    case Vllm::kJsonSchema:
      return AnswerForm{Kind::kJsonSchema, params.json_schema(), {}};
    case Vllm::kRegex:
      return AnswerForm{Kind::kRegex, params.regex(), {}};
    case Vllm::kGrammar:
      return AnswerForm{Kind::kGrammar, params.grammar(), {}};
    case Vllm::kJsonObject:
      if (!params.json_object()) return Refuse("sampling_params.json_object", "false asks for nothing");
      return AnswerForm{Kind::kJsonObject, "", {}};
    case Vllm::kChoice:
      return AnswerForm{Kind::kOneOf, "", {params.choice().choices().begin(), params.choice().choices().end()}};
    case Vllm::kStructuralTag:  // Refused with the fields that are not mapped.
    case Vllm::CONSTRAINT_NOT_SET:
      break;
  }
  return std::optional<AnswerForm>();
}

}  // namespace

absl::Span<const FieldName> VllmFieldNames() {
  static constexpr FieldName kNames[] = {{"sampling", "sampling_params"},
                                         {"structured_output.one_of.texts", "sampling_params.choice.choices"},
                                         {"structured_output.one_of", "sampling_params.choice"},
                                         {"structured_output", "sampling_params"},
                                         {"token_ids.ids", "tokenized.input_ids"},
                                         {"token_ids", "tokenized.input_ids"},
                                         {"prompt", "text"},
                                         {"optimization.collection", "c3po-collection"},
                                         {"optimization.min_index_generation", "c3po-min-generation"},
                                         {"optimization.method", "c3po-method"}};
  return kNames;
}

absl::StatusOr<GenerateCall> GenerateFromVllm(const vllm_engine::GenerateRequest& request, const VllmContext& context) {
  C3PO_RETURN_IF_ERROR(RefuseOtherFields(request, "", kRequestFields));
  if (request.has_data_parallel_rank() && request.data_parallel_rank() != 0)
    return Refuse("data_parallel_rank",
                  absl::StrCat("is ", request.data_parallel_rank(), "; this server is rank 0 alone"));
  GenerateCall call;
  C3PO_ASSIGN_OR_RETURN(call.input, InputOf(request));
  C3PO_ASSIGN_OR_RETURN(call.sampling, SamplingOf(request.sampling_params(), context));
  C3PO_ASSIGN_OR_RETURN(call.form, FormOf(request.sampling_params()));
  call.max_tokens_given = request.sampling_params().has_max_tokens();
  call.skip_special_tokens = request.sampling_params().skip_special_tokens();
  return call;
}

absl::StatusOr<std::vector<int32_t>> IdsFromVllm(const vllm_engine::EmbedRequest& request) {
  if (request.tokenized().input_ids().empty()) return Refuse("tokenized.input_ids", "must not be empty");
  return IdsOf(request.tokenized());
}

vllm_engine::GenerateStreamChunk ChunkToVllm(const TextChunk& chunk, int top) {
  vllm_engine::GenerateStreamChunk message;
  message.set_index(static_cast<uint32_t>(chunk.answer));
  message.set_prompt_tokens(static_cast<uint32_t>(chunk.prompt_tokens));
  message.set_completion_tokens(static_cast<uint32_t>(chunk.tokens.size()));
  vllm_engine::OutputLogProbs* const logprobs = top < 0 ? nullptr : message.mutable_output_logprobs();
  for (const SampledToken& token : chunk.tokens) AddToken(token, top, message.mutable_token_ids(), logprobs);
  return message;
}

vllm_engine::GenerateComplete EndToVllm(int index, const AnswerEnd& end, const Usage& usage,
                                        absl::Span<const std::string> stops) {
  vllm_engine::GenerateComplete message;
  message.set_index(static_cast<uint32_t>(index));
  message.set_finish_reason(end.finish_reason == FinishReason::kStop ? "stop" : "length");
  message.set_prompt_tokens(static_cast<uint32_t>(usage.prompt_tokens));
  message.set_completion_tokens(static_cast<uint32_t>(end.completion_tokens));
  message.set_cached_tokens(static_cast<uint32_t>(usage.cached_tokens));
  if (end.stop) message.set_matched_stop_str(stops[static_cast<size_t>(*end.stop)]);
  return message;
}

}  // namespace c3po
