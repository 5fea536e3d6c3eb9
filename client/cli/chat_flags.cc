#include "client/cli/chat_flags.h"

#include "index/base/durable_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int64_t kJsonBytesMax = int64_t{1} << 20;

// The files' texts as they are: the server says which of them is no JSON object.
absl::Status ReadFiles(const std::vector<std::string>& paths, google::protobuf::RepeatedPtrField<std::string>* texts) {
  for (const std::string& path : paths) {
    C3PO_ASSIGN_OR_RETURN(*texts->Add(), ReadWholeFile(path, kJsonBytesMax));
  }
  return absl::OkStatus();
}

}  // namespace

void AddChatFlags(CLI::App& command, ChatFlags* flags) {
  command.add_flag("--chat", flags->chat, "Send the prompt as a user's chat message");
  command.add_option("--system", flags->system, "System message; implies --chat");
  command
      .add_option(
          "--tool", flags->tools,
          "File of a tool that the chat template tells the model, a JSON object; may be repeated; implies --chat")
      ->expected(1)
      ->take_all();
  command.add_option("--document", flags->documents, "File of a document, likewise")->expected(1)->take_all();
}

absl::Status FillChat(const ChatFlags& flags, const std::string& prompt, v1::Chat& chat) {
  if (flags.system) {
    v1::ChatMessage& message = *chat.add_messages();
    message.set_role("system");
    message.set_content(*flags.system);
  }
  v1::ChatMessage& message = *chat.add_messages();
  message.set_role("user");
  message.set_content(prompt);
  C3PO_RETURN_IF_ERROR(ReadFiles(flags.tools, chat.mutable_tools_json()));
  return ReadFiles(flags.documents, chat.mutable_documents_json());
}

}  // namespace c3po
