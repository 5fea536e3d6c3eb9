#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/status_macros.h"
#include "server/rpc/doors/http/completion_request.h"
#include "server/rpc/doors/http/json_slices.h"

namespace c3po {
namespace {

constexpr char kMessages[] = "messages";

absl::Status Refuse(absl::string_view field, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", why));
}

// `object` with the value of one member replaced by what `replace` gives for it; others as they are written.
template <typename Replace>
std::string WithMember(absl::string_view object, absl::string_view name, const Replace& replace) {
  std::vector<std::string> members;
  VisitMembers(object, [&](absl::string_view key, absl::string_view value) {
    const bool is_it = key == absl::StrCat("\"", name, "\"");
    members.push_back(absl::StrCat(key, ":", is_it ? replace(value) : std::string(value)));
    return true;
  });
  return absl::StrCat("{", absl::StrJoin(members, ","), "}");
}

// Clients send a call's arguments as a text of JSON; templates are written for the object that it is.
std::string ArgumentsAsObject(absl::string_view value) {
  const auto text = TextOf("", value);
  if (!text.ok()) return std::string(value);
  if (text->empty()) return "{}";
  return JsonFields::Parse(*text).ok() ? *text : std::string(value);
}

std::string ToolCalls(absl::string_view list) {
  std::vector<std::string> calls;
  VisitElements(list, [&](absl::string_view call) {
    calls.push_back(WithMember(call, "function", [](absl::string_view function) {
      return WithMember(function, "arguments", ArgumentsAsObject);
    }));
    return true;
  });
  return absl::StrCat("[", absl::StrJoin(calls, ","), "]");
}

// A text, or parts that are texts, which are joined by line breaks as vLLM does.
absl::Status ReadContent(const JsonFields& message, std::string& content) {
  const absl::string_view value = message.Find("content");
  if (KindOf(value) != JsonKind::kList) return message.Read("content", content);
  std::vector<std::string> objects, texts;
  C3PO_RETURN_IF_ERROR(message.ReadObjects("content", objects));
  for (size_t i = 0; i < objects.size(); ++i) {
    C3PO_ASSIGN_OR_RETURN(const JsonFields part,
                          JsonFields::Parse(objects[i], absl::StrCat(message.PathOf("content"), "[", i, "].")));
    std::string type;
    C3PO_RETURN_IF_ERROR(part.Read("type", type));
    if (type != "text" && !(type.empty() && part.Has("text")))
      return Refuse(part.PathOf("type"), "must be text: the model reads nothing else");
    C3PO_RETURN_IF_ERROR(part.Read("text", texts.emplace_back()));
  }
  content = absl::StrJoin(texts, "\n");
  return absl::OkStatus();
}

absl::StatusOr<ConversationMessage> ReadMessage(const JsonFields& fields, std::vector<std::string>& unknown) {
  static constexpr KnownField kKnown[] = {
      {"role", FieldFate::kRead},        {"content", FieldFate::kRead},           {"name", FieldFate::kRead},
      {"tool_calls", FieldFate::kRead},  {"tool_call_id", FieldFate::kRead},      {"reasoning", FieldFate::kRead},
      {"refusal", FieldFate::kNoEffect}, {"reasoning_content", FieldFate::kRead}, {"annotations", FieldFate::kNoEffect},
      {"audio", FieldFate::kRefused},    {"function_call", FieldFate::kRefused}};
  C3PO_RETURN_IF_ERROR(fields.Check(kKnown, unknown));
  ConversationMessage message;
  C3PO_RETURN_IF_ERROR(fields.Read("role", message.role));
  if (message.role.empty()) return Refuse(fields.PathOf("role"), "must be set");
  C3PO_RETURN_IF_ERROR(ReadContent(fields, message.content));
  std::vector<std::string> members;
  for (const absl::string_view name : {"name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content"}) {
    const absl::string_view value = fields.Find(name);
    if (value.empty() || value == "[]") continue;
    const bool calls = name == "tool_calls" && KindOf(value) == JsonKind::kList;
    members.push_back(absl::StrCat("\"", name, "\":", calls ? ToolCalls(value) : std::string(value)));
  }
  if (!members.empty()) message.fields_json = absl::StrCat("{", absl::StrJoin(members, ","), "}");
  return message;
}

absl::Status ReadConversation(const JsonFields& fields, CompletionRequest& request) {
  Conversation conversation;
  std::vector<std::string> messages;
  C3PO_RETURN_IF_ERROR(fields.ReadObjects(kMessages, messages));
  for (size_t i = 0; i < messages.size(); ++i) {
    C3PO_ASSIGN_OR_RETURN(const JsonFields one, JsonFields::Parse(messages[i], absl::StrCat(kMessages, "[", i, "].")));
    C3PO_ASSIGN_OR_RETURN(conversation.messages.emplace_back(), ReadMessage(one, request.unknown));
  }
  C3PO_RETURN_IF_ERROR(fields.ReadObjects("tools", conversation.tools_json));
  C3PO_RETURN_IF_ERROR(fields.ReadObjects("documents", conversation.documents_json));
  if (fields.Has("chat_template_kwargs")) {
    if (KindOf(fields.Find("chat_template_kwargs")) != JsonKind::kObject)
      return Refuse("chat_template_kwargs", "must be an object");
    conversation.template_kwargs_json = std::string(fields.Find("chat_template_kwargs"));
  }
  C3PO_RETURN_IF_ERROR(fields.Read("add_generation_prompt", conversation.add_generation_prompt));
  request.prompts.emplace_back(std::move(conversation));
  return absl::OkStatus();
}

// Calls of tools are the model's own text here; nothing makes it call one.
absl::Status CheckToolChoice(const JsonFields& fields) {
  const absl::string_view choice = fields.Find("tool_choice");
  if (choice.empty() || choice == "\"auto\"" || choice == "\"none\"") return absl::OkStatus();
  return Refuse("tool_choice", "must be auto or none: this server does not constrain answers");
}

absl::Status ReadLogprobs(const JsonFields& fields, SamplingParams& sampling) {
  bool wanted = false;
  int top = 0;
  C3PO_RETURN_IF_ERROR(fields.Read("logprobs", wanted));
  C3PO_RETURN_IF_ERROR(fields.Read("top_logprobs", top));
  if (!wanted && top != 0) return Refuse("top_logprobs", "can only be given with logprobs");
  if (top < 0 || top > kLogprobsMax)
    return Refuse("top_logprobs", absl::StrCat("is ", top, ", must be in [0, ", kLogprobsMax, "]"));
  if (wanted) sampling.logprobs = top;
  return absl::OkStatus();
}

std::vector<KnownField> ChatFields() {
  std::vector<KnownField> known = CommonFields();
  for (const absl::string_view name : {"messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice",
                                       "documents", "chat_template_kwargs", "add_generation_prompt", "modalities"}) {
    known.push_back({name, FieldFate::kRead});
  }
  for (const absl::string_view name :
       {"parallel_tool_calls", "store", "metadata", "service_tier", "reasoning_effort", "include_reasoning",
        "verbosity", "prediction", "safety_identifier", "prompt_cache_key"}) {
    known.push_back({name, FieldFate::kNoEffect});
  }
  for (const absl::string_view name :
       {"continue_final_message", "chat_template", "mm_processor_kwargs", "audio", "functions", "function_call"}) {
    known.push_back({name, FieldFate::kRefused});
  }
  return known;
}

}  // namespace

absl::StatusOr<CompletionRequest> ReadChatRequest(absl::string_view body, const ServedModel& served) {
  static const std::vector<KnownField> known = ChatFields();
  CompletionRequest request;
  request.chat = true;
  C3PO_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Parse(body));
  C3PO_RETURN_IF_ERROR(fields.Check(known, request.unknown));
  C3PO_RETURN_IF_ERROR(ReadCommon(fields, served, request));
  C3PO_RETURN_IF_ERROR(ReadConversation(fields, request));
  C3PO_RETURN_IF_ERROR(CheckToolChoice(fields));
  for (const absl::string_view name : {"echo", "add_special_tokens"}) {
    bool wanted = false;
    C3PO_RETURN_IF_ERROR(fields.Read(name, wanted));
    if (wanted) return Refuse(name, "is not supported by this server");
  }
  std::vector<std::string> modalities;
  C3PO_RETURN_IF_ERROR(fields.ReadTexts("modalities", modalities));
  for (const std::string& modality : modalities) {
    if (modality != "text") return Refuse("modalities", "must be text alone");
  }
  C3PO_RETURN_IF_ERROR(ReadLogprobs(fields, request.sampling));
  request.sampling.max_tokens = served.context_window;
  C3PO_RETURN_IF_ERROR(fields.Read("max_tokens", request.sampling.max_tokens));
  C3PO_RETURN_IF_ERROR(fields.Read("max_completion_tokens", request.sampling.max_tokens));
  request.max_tokens_given = fields.Has("max_tokens") || fields.Has("max_completion_tokens");
  return request;
}

}  // namespace c3po
