// A reply of the chat templates' renderer, and a conversation's JSON: refused, or one that can be read.

#include "server/text/conversation.h"
#include "server/text/jinja_reply.h"
#include "server/text/utf8.h"
#include "tests/fuzz/fuzz_target.h"

C3PO_FUZZ_TARGET(input) {
  const auto reply = c3po::ParseJinjaReply(input);
  C3PO_FUZZ_CHECK(reply.ok() || reply.status().code() == absl::StatusCode::kInvalidArgument);
  C3PO_FUZZ_CHECK(!reply.ok() || c3po::IsValidUtf8(reply->text));
  c3po::Conversation conversation;
  conversation.messages.push_back({"user", "", std::string(input)});
  conversation.tools_json = conversation.documents_json = {std::string(input)};
  conversation.template_kwargs_json = std::string(input);
  if (!c3po::CheckConversation(conversation).ok()) return;
  C3PO_FUZZ_CHECK(c3po::IsValidUtf8(c3po::RenderRequest(conversation, "default", absl::UnixEpoch())));
}
