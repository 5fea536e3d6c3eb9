#ifndef C3PO_SERVER_TEXT_CONVERSATION_H_
#define C3PO_SERVER_TEXT_CONVERSATION_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace c3po {

inline constexpr char kDeveloper[] = "developer";  // A role.

// A request's conversation, as generation.proto's Chat describes its fields. JSON is as the client wrote it: order of
// members and spelling of numbers reach the template unchanged.
struct ConversationMessage {
  std::string role;
  std::string content;
  std::string fields_json;  // One object; empty: none.
};

struct Conversation {
  std::vector<ConversationMessage> messages;
  std::vector<std::string> tools_json, documents_json;  // One object each.
  std::string template_kwargs_json;                     // One object; empty: none.
  bool add_generation_prompt = true;

  // Turns of system, user and assistant that ask for the assistant's next one, and nothing else: what ChatFormat reads.
  // `developers`: turns of developers count as such.
  bool IsPlain(bool developers = false) const;
};

// OK if a template can be given it. InvalidArgument names the field: "chat.messages" when there are none,
// "chat.messages[2].role" of no known name, "chat.tools_json[0]" that is no JSON object, and so on.
absl::Status CheckConversation(const Conversation& conversation);

// What the renderer's process (jinja_renderer.py) is asked: `name` of the template, the variables, and the time that
// strftime_now tells. For a conversation that CheckConversation accepts.
std::string RenderRequest(const Conversation& conversation, absl::string_view name, absl::Time now);

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_CONVERSATION_H_
