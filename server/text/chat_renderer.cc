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

// Conversations that tell formats apart: every role in every place, contents that a template may change or leave out.
const std::vector<std::vector<ChatTurn>>& Probes() {
  static const std::vector<std::vector<ChatTurn>> probes = {
      {{"user", " Hi "}},
      {{"system", " Be brief.\n"}, {"user", "2 + 2?"}},
      {{"system", "S"}, {"user", "a\n"}, {"assistant", " b "}, {"user", "c"}, {"assistant", "d"}, {"user", "e"}},
      {{"user", "a"}, {"assistant", "<think>\nb\n</think>\n\nc"}, {"user", "d"}},
      {{"user", "a"}, {"assistant", "b"}},
      {{"system", ""}, {"user", "<b>\xc3\xa9</b>"}},
      {{"user", "a"}, {"user", "b"}}};
  return probes;
}

}  // namespace

ChatRenderer::ChatRenderer(ChatTemplates templates, JinjaRenderer::Options options)
    : templates_(std::move(templates)),
      known_(ChatFormat::Recognize(templates_)),
      jinja_(std::make_unique<JinjaRenderer>(TemplatesJson(templates_), templates_.special_tokens_json,
                                             std::move(options))) {}

std::string ChatRenderer::RenderedBy() const { return IsKnown() ? known_->name() : "jinja"; }

absl::StatusOr<std::string> ChatRenderer::ByJinja(absl::string_view request) const {
  absl::Notification rendered;
  absl::StatusOr<std::string> prompt;
  jinja_->Render(std::string(request), nullptr, [&](absl::StatusOr<std::string> result) {
    prompt = std::move(result);
    rendered.Notify();
  });
  rendered.WaitForNotification();
  return prompt;
}

bool ChatRenderer::Differs(absl::Time now) const {
  for (const std::vector<ChatTurn>& turns : Probes()) {
    Conversation conversation;
    for (const ChatTurn& turn : turns) conversation.messages.push_back({turn.role, turn.content, ""});
    const auto jinjas = ByJinja(RenderRequest(conversation, kStandard, now));
    // "refuses" or "fails at" is an answer; no Jinja, or no time, is none.
    if (!jinjas.ok() && !absl::StrContains(jinjas.status().message(), " this conversation: ")) return false;
    const auto ours = known_->Render(turns, now);
    if (ours.ok() != jinjas.ok() || (ours.ok() && *ours != *jinjas)) return true;
  }
  return false;
}

absl::Status ChatRenderer::Check(absl::Time now) {
  if (known_.ok()) {
    differs_.store(Differs(now), std::memory_order_relaxed);
    return absl::OkStatus();
  }
  const absl::Status status = ByJinja(absl::StrCat("{\"template\":\"", kStandard, "\"}")).status();
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
  return !IsKnown() || !conversation.IsPlain(!KnowsDevelopers(conversation));
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
  if (IsKnown() && conversation.IsPlain()) {
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
