#include "server/text/conversation.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/json_nesting.h"
#include "index/base/status_macros.h"
#include "server/text/utf8.h"

namespace c3po {
namespace {

constexpr std::array<absl::string_view, 5> kRoles = {"system", "developer", "user", "assistant", "tool"};

// Variables that a request sets by fields of its own.
constexpr std::array<absl::string_view, 5> kOwnVariables = {"messages", "tools", "documents", "add_generation_prompt",
                                                            "chat_template"};

absl::Status FieldError(absl::string_view field, absl::string_view message) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", message));
}

// The object that `text` is, for a look at its keys; the text itself is what is passed on.
absl::StatusOr<nlohmann::json> ReadObject(absl::string_view field, const std::string& text) {
  if (NestsDeeperThan(text, kJsonLevelsMax)) {
    return FieldError(field, absl::StrCat("nests deeper than ", kJsonLevelsMax, " levels"));
  }
  // Where the library's text would end, though more of it is passed on.
  if (absl::StrContains(text, '\0')) return FieldError(field, "is no JSON object: it has a zero byte");
  try {
    nlohmann::json value = nlohmann::json::parse(text);
    if (!value.is_object()) return FieldError(field, "is no JSON object");
    return value;
  } catch (const nlohmann::json::exception& e) {
    return FieldError(field, absl::StrCat("is no JSON object: ", e.what()));
  }
}

absl::Status CheckMessage(const std::string& name, const ConversationMessage& message) {
  if (std::find(kRoles.begin(), kRoles.end(), message.role) == kRoles.end()) {
    return FieldError(absl::StrCat(name, ".role"),
                      absl::StrCat("\"", message.role, "\" is none of ", absl::StrJoin(kRoles, ", ")));
  }
  if (!IsValidUtf8(message.content)) return FieldError(absl::StrCat(name, ".content"), "is not valid UTF-8");
  if (message.fields_json.empty()) return absl::OkStatus();
  const std::string field = absl::StrCat(name, ".fields_json");
  C3PO_ASSIGN_OR_RETURN(const nlohmann::json fields, ReadObject(field, message.fields_json));
  if (fields.contains("role")) return FieldError(field, "role: the message has a field of its own for it");
  if (fields.contains("content") && !message.content.empty()) {
    return FieldError(field, "content: is given twice, as the message's field `content` is not empty");
  }
  return absl::OkStatus();
}

std::string Quoted(const std::string& text) { return nlohmann::json(text).dump(); }

// The members of an object's text, without its braces; of no text, none.
absl::string_view Members(absl::string_view object) {
  if (object.empty()) return object;
  const size_t open = object.find('{'), close = object.rfind('}');
  const absl::string_view inner = object.substr(open + 1, close - open - 1);
  return inner.find_first_not_of(" \t\r\n") == absl::string_view::npos ? absl::string_view() : inner;
}

std::string MessageJson(const ConversationMessage& message) {
  const absl::string_view more = Members(message.fields_json);
  return absl::StrCat("{\"role\":", Quoted(message.role), ",\"content\":", Quoted(message.content),
                      more.empty() ? "" : ",", more, "}");
}

// A template that looks whether there are tools finds none where the request has none, as transformers passes it.
std::string ListJson(const std::vector<std::string>& objects) {
  return objects.empty() ? "null" : absl::StrCat("[", absl::StrJoin(objects, ","), "]");
}

}  // namespace

bool Conversation::IsPlain(bool developers) const {
  const auto plain = [developers](const ConversationMessage& message) {
    const bool known = message.role == "system" || message.role == "user" || message.role == "assistant" ||
                       (developers && message.role == kDeveloper);
    return known && message.fields_json.empty();
  };
  return tools_json.empty() && documents_json.empty() && template_kwargs_json.empty() && add_generation_prompt &&
         std::all_of(messages.begin(), messages.end(), plain);
}

absl::Status CheckConversation(const Conversation& conversation) {
  if (conversation.messages.empty()) return FieldError("chat.messages", "is empty");
  for (size_t i = 0; i < conversation.messages.size(); ++i) {
    C3PO_RETURN_IF_ERROR(CheckMessage(absl::StrCat("chat.messages[", i, "]"), conversation.messages[i]));
  }
  for (size_t i = 0; i < conversation.tools_json.size(); ++i) {
    C3PO_RETURN_IF_ERROR(ReadObject(absl::StrCat("chat.tools_json[", i, "]"), conversation.tools_json[i]).status());
  }
  for (size_t i = 0; i < conversation.documents_json.size(); ++i) {
    C3PO_RETURN_IF_ERROR(
        ReadObject(absl::StrCat("chat.documents_json[", i, "]"), conversation.documents_json[i]).status());
  }
  if (conversation.template_kwargs_json.empty()) return absl::OkStatus();
  constexpr absl::string_view kField = "chat.template_kwargs_json";
  C3PO_ASSIGN_OR_RETURN(const nlohmann::json kwargs, ReadObject(kField, conversation.template_kwargs_json));
  for (const absl::string_view name : kOwnVariables) {
    if (kwargs.contains(std::string(name))) {
      return FieldError(kField, absl::StrCat(name, ": is not for template_kwargs_json to set"));
    }
  }
  return absl::OkStatus();
}

std::string RenderRequest(const Conversation& conversation, absl::string_view name, absl::Time now) {
  const std::string messages =
      absl::StrJoin(conversation.messages, ",",
                    [](std::string* out, const ConversationMessage& message) { out->append(MessageJson(message)); });
  const std::string& kwargs = conversation.template_kwargs_json;
  return absl::StrCat("{\"template\":", Quoted(std::string(name)), ",\"now\":", absl::ToUnixSeconds(now),
                      ",\"messages\":[", messages, "],\"tools\":", ListJson(conversation.tools_json),
                      ",\"documents\":", ListJson(conversation.documents_json),
                      ",\"add_generation_prompt\":", conversation.add_generation_prompt ? "true" : "false",
                      ",\"kwargs\":", kwargs.empty() ? "{}" : kwargs, "}");
}

}  // namespace c3po
