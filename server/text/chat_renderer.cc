#include "server/text/chat_renderer.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr char kStandard[] = "default";
constexpr char kToolUse[] = "tool_use";

std::string TemplatesJson(const ChatTemplates& templates) {
  nlohmann::json named = {{kStandard, templates.standard}};
  if (!templates.tool_use.empty()) named[kToolUse] = templates.tool_use;
  return named.dump();
}

}  // namespace

ChatRenderer::ChatRenderer(ChatTemplates templates, JinjaRenderer::Options options)
    : templates_(std::move(templates)),
      known_(ChatFormat::Recognize(templates_)),
      jinja_(std::make_unique<JinjaRenderer>(TemplatesJson(templates_), templates_.special_tokens_json,
                                             std::move(options))) {}

std::string ChatRenderer::RenderedBy() const { return known_.ok() ? known_->name() : "jinja"; }

absl::Status ChatRenderer::Check() {
  if (known_.ok()) return absl::OkStatus();
  absl::Notification checked;
  absl::Status status;
  jinja_->Render(absl::StrCat("{\"template\":\"", kStandard, "\"}"), nullptr,
                 [&](const absl::StatusOr<std::string>& rendered) {
                   status = rendered.status();
                   checked.Notify();
                 });
  checked.WaitForNotification();
  usable_.store(status.ok(), std::memory_order_relaxed);
  return status;
}

bool ChatRenderer::KnowsDevelopers(const Conversation& conversation) const {
  return absl::StrContains(templates_.For(!conversation.tools_json.empty()), kDeveloper);
}

absl::Status ChatRenderer::CheckReadByTemplate(const Conversation& conversation) const {
  const std::string& text = templates_.For(!conversation.tools_json.empty());
  if (!conversation.tools_json.empty() && !absl::StrContains(text, "tools")) {
    return absl::InvalidArgumentError("chat.tools_json: the model's chat template reads no tools");
  }
  if (!conversation.documents_json.empty() && !absl::StrContains(text, "documents")) {
    return absl::InvalidArgumentError("chat.documents_json: the model's chat template reads no documents");
  }
  return absl::OkStatus();
}

bool ChatRenderer::NeedsJinja(const Conversation& conversation) const {
  return !known_.ok() || !conversation.IsPlain(!KnowsDevelopers(conversation));
}

void ChatRenderer::Render(Conversation conversation, JinjaRenderer::Check check, JinjaRenderer::Done done,
                          absl::Time now) const {
  absl::Status valid = CheckConversation(conversation);
  if (valid.ok()) valid = CheckReadByTemplate(conversation);
  if (!valid.ok()) return done(valid);
  if (!KnowsDevelopers(conversation)) {
    for (ConversationMessage& message : conversation.messages) {
      if (message.role == kDeveloper) message.role = "system";
    }
  }
  if (known_.ok() && conversation.IsPlain()) {
    std::vector<ChatTurn> turns;
    for (ConversationMessage& message : conversation.messages)
      turns.push_back({std::move(message.role), std::move(message.content)});
    return done(known_->Render(turns, now));
  }
  const bool tools = !conversation.tools_json.empty() && !templates_.tool_use.empty();
  jinja_->Render(RenderRequest(conversation, tools ? kToolUse : kStandard, now), std::move(check), std::move(done));
}

absl::StatusOr<std::string> ChatRenderer::RenderNow(Conversation conversation, absl::Time now) const {
  absl::Notification rendered;
  absl::StatusOr<std::string> prompt;
  const auto take = [&](absl::StatusOr<std::string> result) {
    prompt = std::move(result);
    rendered.Notify();
  };
  Render(std::move(conversation), nullptr, take, now);
  rendered.WaitForNotification();
  return prompt;
}

}  // namespace c3po
