#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/rpc/doors/http/answer_constraint.h"
#include "server/rpc/doors/http/c3po_choice.h"
#include "server/rpc/doors/http/completion_request.h"
#include "server/rpc/doors/http/json_slices.h"
#include "server/rpc/doors/optimization_choice.h"

namespace c3po {
namespace {

constexpr double kGreedyBelow = 1e-5;           // vLLM's _SAMPLING_EPS.
constexpr size_t kLogitBiasEntriesMax = 65536;  // As --logit-bias-max.

absl::Status Refuse(absl::string_view field, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", why));
}

absl::Status ReadLogitBias(const JsonFields& fields, std::vector<LogitBias>& biases) {
  constexpr char kName[] = "logit_bias";
  const absl::string_view value = fields.Find(kName);
  if (value.empty()) return absl::OkStatus();
  if (KindOf(value) != JsonKind::kObject) return Refuse(kName, "must be an object of token ids and numbers");
  absl::Status status;
  VisitMembers(value, [&](absl::string_view key, absl::string_view bias) {
    LogitBias& added = biases.emplace_back();
    const absl::string_view id = key.substr(1, key.size() - 2);
    if (!absl::SimpleAtoi(id, &added.token_id)) {
      status = Refuse(kName, "has a member that is no token id");
      return false;
    }
    const auto number = NumberOf(absl::StrCat(kName, "[", added.token_id, "]"), bias);
    status = number.status();
    if (!status.ok()) return false;
    added.bias = static_cast<float>(std::clamp<double>(*number, -kLogitBiasMagnitudeMax, kLogitBiasMagnitudeMax));
    if (biases.size() > kLogitBiasEntriesMax) status = Refuse(kName, "has too many entries");
    return status.ok();
  });
  std::stable_sort(biases.begin(), biases.end(),
                   [](const LogitBias& a, const LogitBias& b) { return a.token_id < b.token_id; });
  for (size_t i = 1; status.ok() && i < biases.size(); ++i) {
    if (biases[i].token_id == biases[i - 1].token_id)
      status = Refuse(absl::StrCat(kName, "[", biases[i].token_id, "]"), "is given twice");
  }
  return status;
}

// Ending an answer at the model's own end tokens is what is done anyway.
absl::Status CheckStopTokens(const JsonFields& fields, const ServedModel& served, bool ignore_eos) {
  constexpr char kName[] = "stop_token_ids";
  if (!fields.Has(kName)) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, IdsOf(kName, fields.Find(kName)));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (absl::c_linear_search(served.end_tokens, ids[i]) && !ignore_eos) continue;
    return Refuse(absl::StrCat(kName, "[", i, "]"),
                  absl::StrCat(ids[i],
                               " is none of the model's end tokens that end this answer; no others are "
                               "supported by this server"));
  }
  return absl::OkStatus();
}

absl::Status ReadStreaming(const JsonFields& fields, CompletionRequest& request) {
  constexpr char kName[] = "stream_options";
  C3PO_RETURN_IF_ERROR(fields.Read("stream", request.stream));
  const absl::string_view value = fields.Find(kName);
  if (value.empty()) return absl::OkStatus();
  if (KindOf(value) != JsonKind::kObject) return Refuse(kName, "must be an object");
  if (!request.stream) return Refuse(kName, "can only be given with stream");
  C3PO_ASSIGN_OR_RETURN(const JsonFields options, JsonFields::Parse(value, absl::StrCat(kName, ".")));
  C3PO_RETURN_IF_ERROR(options.Read("include_usage", request.include_usage));
  C3PO_RETURN_IF_ERROR(options.Read("continuous_usage_stats", request.continuous_usage));
  static constexpr KnownField kOptions[] = {{"include_usage", FieldFate::kRead},
                                            {"continuous_usage_stats", FieldFate::kRead},
                                            {"include_obfuscation", FieldFate::kNoEffect}};
  return options.Check(kOptions, request.unknown);
}

absl::Status ReadModel(const JsonFields& fields, const ServedModel& served, CompletionRequest& request) {
  request.model = std::string(served.name);
  C3PO_RETURN_IF_ERROR(fields.Read("model", request.model));
  C3PO_ASSIGN_OR_RETURN(request.optimizes, ReadC3poChoice(fields, request.optimization));
  C3PO_RETURN_IF_ERROR(ChooseByModelName("model", request.model, served.name, request.optimization));
  request.optimizes = request.optimizes || request.model != served.name;
  return absl::OkStatus();
}

}  // namespace

std::vector<KnownField> CommonFields() {
  std::vector<KnownField> known = ConstraintFields();
  for (const absl::string_view name : {"model",
                                       "c3po",
                                       "best_of",
                                       "ignore_eos",
                                       "logit_bias",
                                       "max_tokens",
                                       "min_p",
                                       "n",
                                       "repetition_penalty",
                                       "request_id",
                                       "return_tokens_as_token_ids",
                                       "seed",
                                       "skip_special_tokens",
                                       "stop",
                                       "stop_token_ids",
                                       "stream",
                                       "stream_options",
                                       "temperature",
                                       "top_k",
                                       "top_p",
                                       "logprobs",
                                       "prompt_logprobs",
                                       "echo",
                                       "add_special_tokens"}) {
    known.push_back({name, FieldFate::kRead});
  }
  for (const absl::string_view name : {"user", "length_penalty", "spaces_between_special_tokens", "cache_salt"}) {
    known.push_back({name, FieldFate::kNoEffect});
  }
  for (const absl::string_view name :
       {"frequency_penalty", "presence_penalty", "min_tokens", "use_beam_search", "include_stop_str_in_output",
        "truncate_prompt_tokens", "allowed_token_ids", "bad_words", "logits_processors", "priority", "return_token_ids",
        "kv_transfer_params", "vllm_xargs"}) {
    known.push_back({name, FieldFate::kRefused});
  }
  return known;
}

absl::Status ReadCommon(const JsonFields& fields, const ServedModel& served, CompletionRequest& request) {
  SamplingParams& sampling = request.sampling;
  C3PO_RETURN_IF_ERROR(ReadModel(fields, served, request));
  C3PO_RETURN_IF_ERROR(fields.Read("request_id", request.request_id));
  sampling.temperature = 1;
  C3PO_RETURN_IF_ERROR(fields.Read("temperature", sampling.temperature));
  if (sampling.temperature >= 0 && sampling.temperature < kGreedyBelow) sampling.temperature = 0;
  C3PO_RETURN_IF_ERROR(fields.Read("top_p", sampling.top_p));
  C3PO_RETURN_IF_ERROR(fields.Read("top_k", sampling.top_k));
  if (sampling.top_k == -1) sampling.top_k = 0;  // vLLM's word for all, too.
  C3PO_RETURN_IF_ERROR(fields.Read("min_p", sampling.min_p));
  C3PO_RETURN_IF_ERROR(fields.Read("repetition_penalty", sampling.repetition_penalty));
  auto seed = static_cast<int64_t>(served.drawn_seed);
  C3PO_RETURN_IF_ERROR(fields.Read("seed", seed));
  sampling.seed = static_cast<uint64_t>(seed);
  C3PO_RETURN_IF_ERROR(fields.Read("n", sampling.n));
  int best_of = sampling.n;
  C3PO_RETURN_IF_ERROR(fields.Read("best_of", best_of));
  if (best_of != sampling.n) return Refuse("best_of", "is not supported by this server, unless it is n");
  C3PO_RETURN_IF_ERROR(fields.Read("ignore_eos", sampling.ignore_eos));
  C3PO_RETURN_IF_ERROR(fields.ReadTexts("stop", sampling.stop));
  C3PO_RETURN_IF_ERROR(CheckStopTokens(fields, served, sampling.ignore_eos));
  C3PO_RETURN_IF_ERROR(ReadLogitBias(fields, sampling.logit_bias));
  C3PO_RETURN_IF_ERROR(fields.Read("skip_special_tokens", request.skip_special_tokens));
  C3PO_RETURN_IF_ERROR(fields.Read("return_tokens_as_token_ids", request.tokens_as_ids));
  if (fields.Has("prompt_logprobs")) return Refuse("prompt_logprobs", "is not supported by this server; see echo");
  C3PO_RETURN_IF_ERROR(ReadStreaming(fields, request));
  C3PO_ASSIGN_OR_RETURN(request.constraint, ReadConstraint(fields));
  return absl::OkStatus();
}

absl::Span<const FieldName> CompletionFieldNames() {
  static constexpr FieldName kNames[] = {{"sampling.", ""},
                                         {"token_ids.ids", "prompt"},
                                         {"token_ids", "prompt"},
                                         {"chat.tools_json", "tools"},
                                         {"chat.documents_json", "documents"},
                                         {"chat.template_kwargs_json", "chat_template_kwargs"},
                                         {"chat.", ""},
                                         {"chat", "messages"},
                                         {"optimization.", "c3po."}};
  return kNames;
}

}  // namespace c3po
