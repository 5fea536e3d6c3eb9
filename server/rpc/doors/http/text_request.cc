#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/rpc/doors/http/completion_request.h"
#include "server/rpc/doors/http/json_slices.h"

namespace c3po {
namespace {

constexpr char kPrompt[] = "prompt";
constexpr int kMaxTokens = 16;  // Of a request that says nothing, as OpenAI's and vLLM's.

absl::Status Refuse(absl::string_view field, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", why));
}

// A list is of numbers, of texts, or of lists of numbers.
absl::Status ReadPrompts(absl::string_view value, int prompts_max, std::vector<PromptInput>& prompts) {
  JsonKind first = JsonKind::kNull;
  VisitElements(value, [&](absl::string_view element) {
    first = KindOf(element);
    return false;
  });
  if (first == JsonKind::kNumber) {
    C3PO_ASSIGN_OR_RETURN(std::vector<int32_t> ids, IdsOf(kPrompt, value));
    prompts.emplace_back(std::move(ids));
    return absl::OkStatus();
  }
  absl::Status status;
  VisitElements(value, [&](absl::string_view element) {
    const std::string path = absl::StrCat(kPrompt, "[", prompts.size(), "]");
    if (prompts.size() == static_cast<size_t>(prompts_max)) {
      status = Refuse(kPrompt, absl::StrCat("has more than ", prompts_max, " prompts"));
    } else if (first == JsonKind::kList) {
      auto ids = IdsOf(path, element);
      status = ids.status();
      if (ids.ok()) prompts.emplace_back(*std::move(ids));
    } else {
      auto text = TextOf(path, element);
      status = text.status();
      if (text.ok()) prompts.emplace_back(*std::move(text));
    }
    return status.ok();
  });
  return status;
}

absl::Status ReadLength(const JsonFields& fields, CompletionRequest& request) {
  int& max_tokens = request.sampling.max_tokens;
  max_tokens = kMaxTokens;
  C3PO_RETURN_IF_ERROR(fields.Read("max_tokens", max_tokens));
  request.max_tokens_given = fields.Has("max_tokens");
  C3PO_RETURN_IF_ERROR(fields.Read("echo", request.echo));
  request.only_prompt = request.echo && max_tokens == 0;
  if (!request.only_prompt) return absl::OkStatus();
  max_tokens = 1;
  request.max_tokens_given = true;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CompletionRequest> ReadTextRequest(absl::string_view body, const ServedModel& served) {
  static const std::vector<KnownField> known = [] {
    std::vector<KnownField> fields = CommonFields();
    fields.push_back({kPrompt, FieldFate::kRead});
    for (const absl::string_view name : {"suffix", "prompt_embeds"}) fields.push_back({name, FieldFate::kRefused});
    return fields;
  }();
  CompletionRequest request;
  C3PO_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Parse(body));
  C3PO_RETURN_IF_ERROR(fields.Check(known, request.unknown));
  C3PO_RETURN_IF_ERROR(ReadCommon(fields, served, request));
  const absl::string_view prompt = fields.Find(kPrompt);
  if (KindOf(prompt) == JsonKind::kList) {
    C3PO_RETURN_IF_ERROR(ReadPrompts(prompt, served.prompts_max, request.prompts));
  } else if (!prompt.empty()) {
    C3PO_ASSIGN_OR_RETURN(std::string text, TextOf(kPrompt, prompt));
    request.prompts.emplace_back(std::move(text));
  }
  if (request.prompts.empty()) return Refuse(kPrompt, "must be a text, token ids, or a list of either, not empty");
  bool add_special_tokens = true;
  C3PO_RETURN_IF_ERROR(fields.Read("add_special_tokens", add_special_tokens));
  if (!add_special_tokens) return Refuse("add_special_tokens", "false is not supported by this server; send token ids");
  C3PO_RETURN_IF_ERROR(ReadLength(fields, request));
  C3PO_RETURN_IF_ERROR(fields.Read("logprobs", request.sampling.logprobs));
  if (fields.Has("logprobs") && request.sampling.logprobs < 0) return Refuse("logprobs", "must not be negative");
  if (request.echo) request.sampling.prompt_logprobs = request.sampling.logprobs;
  return request;
}

}  // namespace c3po
