#ifndef C3PO_SERVER_TEXT_CHAT_RENDERER_H_
#define C3PO_SERVER_TEXT_CHAT_RENDERER_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/text/chat_format.h"
#include "server/text/chat_templates.h"
#include "server/text/conversation.h"
#include "server/text/jinja_renderer.h"

namespace c3po {

// From conversations to prompts by a model's chat template. A plain conversation (Conversation::IsPlain) of a template
// that ChatFormat recognizes is rendered right here; everything else by Jinja, in a process of its own, started when
// it is needed. Both give the same prompt: where there is Jinja, Check compares them. Thread-safe.
//
// The role "developer" reaches a template that never names it as "system". Tools and documents for a template that
// never names them would be lost without a word: InvalidArgument "chat.tools_json" and "chat.documents_json".
class ChatRenderer {
 public:
  ChatRenderer(ChatTemplates templates, JinjaRenderer::Options options);

  // "ChatML", say, where the template is of a known format; else "jinja".
  std::string RenderedBy() const;
  // Whether the template can be rendered: of a known format, or by Jinja, which is started and compiles it. Waits for
  // that; the error is that of JinjaRenderer::Render. `usable` tells the last result, true before there was one.
  // A known format for which Jinja writes other prompts was taken wrongly: from then on all goes to Jinja. Without
  // Jinja it is trusted.
  absl::Status Check(absl::Time now = absl::Now());
  bool usable() const { return usable_.load(std::memory_order_relaxed); }

  // Whether Render goes to the other process.
  bool NeedsJinja(const Conversation& conversation) const;

  // The prompt that asks for the assistant's next turn; it is encoded without adding special tokens. `done` hears it
  // once: on this thread, or on the renderer's, and must not block. `check` is asked before Jinja begins; its error is
  // the result then. `now`: the local time that templates tell.
  // Errors: those of CheckConversation, ChatFormat::Render and JinjaRenderer::Render.
  void Render(Conversation conversation, JinjaRenderer::Check check, JinjaRenderer::Done done,
              absl::Time now = absl::Now()) const;
  // The same, and waits for it.
  absl::StatusOr<std::string> RenderNow(Conversation conversation, absl::Time now = absl::Now()) const;

  // As JinjaRenderer::Stop.
  void Stop() { jinja_->Stop(); }

 private:
  bool IsKnown() const { return known_.ok() && !differs_.load(std::memory_order_relaxed); }
  // Whether Jinja answers otherwise than the known format.
  bool Differs(absl::Time now) const;
  absl::StatusOr<std::string> ByJinja(absl::string_view request) const;
  absl::Status CheckReadByTemplate(const Conversation& conversation) const;
  bool KnowsDevelopers(const Conversation& conversation) const;

  const ChatTemplates templates_;
  const absl::StatusOr<ChatFormat> known_;
  const std::unique_ptr<JinjaRenderer> jinja_;
  std::atomic<bool> usable_{true};
  std::atomic<bool> differs_{false};
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_CHAT_RENDERER_H_
