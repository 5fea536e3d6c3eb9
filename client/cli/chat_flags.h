#ifndef C3PO_CLIENT_CLI_CHAT_FLAGS_H_
#define C3PO_CLIENT_CLI_CHAT_FLAGS_H_

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "c3po/v1/generation.pb.h"

namespace c3po {

// What `ask` and `score` share: a prompt that is sent as a user's message of a conversation.
struct ChatFlags {
  bool chat = false;
  std::optional<std::string> system;
  std::vector<std::string> tools, documents;  // Files of one JSON object each.

  bool wanted() const { return chat || system || !tools.empty() || !documents.empty(); }
};

// --chat, --system, --tool and --document. `flags` outlives `command`.
void AddChatFlags(CLI::App& command, ChatFlags* flags);

// The conversation of the flags whose last message is the user's `prompt`. An error of a file names it.
absl::Status FillChat(const ChatFlags& flags, const std::string& prompt, v1::Chat& chat);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_CHAT_FLAGS_H_
